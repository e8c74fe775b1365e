// Defines: Params, the uniform of every attention kernel, and the bits of its flags.
// Expects: const TERMS. The binding itself is declared by the prelude.
// See: src/wgsl/params.rs, field by field.

const FLAG_KV_LENGTHS: u32 = 1u;
const FLAG_PREFIX: u32 = 2u;
const FLAG_BOTTOM_RIGHT: u32 = 4u;
const FLAG_VARLEN: u32 = 8u;
const FLAG_SINKS: u32 = 16u;
const FLAG_PAGED: u32 = 32u;
const FLAG_DROPOUT: u32 = 64u;
const FLAG_STATS: u32 = 128u;
const FLAG_ADDS: u32 = 256u;

struct Params {
    // Strides of [batch, head, seq, dim] in elements.
    query_strides: vec4<u32>,
    key_strides: vec4<u32>,
    value_strides: vec4<u32>,
    output_strides: vec4<u32>,
    // First element of query, key, value, output.
    offsets: vec4<u32>,
    // Runtime values of each term, which reads them as NAME_values().
    term_values: array<vec4<u32>, TERMS>,
    // Backward: stride of each axis of pairs in the gradient of a bias, 0 where it is summed. Key sums: strides of [batch,
    // kv_head, _, key].
    sums_strides: vec4<u32>,
    // Start in the tables of the user's terms and number of elements, of two tables each.
    user_tables: array<vec4<u32>, 4>,

    // Offset of each vector in `tables`, in words.
    table_kv_lengths: u32,
    table_prefix_lengths: u32,
    table_segment_ids_q: u32,
    table_segment_ids_kv: u32,
    table_cu_seqlens_q: u32,
    table_cu_seqlens_kv: u32,
    table_alibi_slopes: u32,
    table_relative_bias: u32,
    table_sinks: u32,
    table_page_table: u32,
    table_block_list: u32,
    table_term_tables: u32,
    // Seed (low word, high word), offset.
    table_dropout: u32,

    flags: u32,
    // Terms of the problem, a bit each.
    terms: u32,
    batch: u32,
    num_heads: u32,
    // Query heads that share a key/value head, and how many of them are packed as rows of one block: all or 1.
    group: u32,
    pack: u32,
    seq_len_q: u32,
    seq_len_kv: u32,
    // Position of row 0 among the keys; FLAG_BOTTOM_RIGHT derives it instead.
    position_offset: i32,
    scale: f32,

    // The grid is linear; y counts lines of this width. A dispatch computes the workgroups first..end.
    grid_width: u32,
    first_workgroup: u32,
    end_workgroup: u32,
    // Splits of the keys, which are merged later, and strides between their results.
    splits: u32,
    output_split_stride: u32,
    lse_split_stride: u32,
    // Staged: part of the score matrix in this step: (batch, head) pairs from `first_pair` on, and `row_count` rows of
    // each from `first_row` on.
    first_pair: u32,
    first_row: u32,
    row_count: u32,
    // Elements of a query row and of a value row; generic variants read them, specialised ones have constants.
    head_dim: u32,
    head_dim_v: u32,
    // Always 0, but unknown to compilers, so that loops stay rolled.
    zero: u32,
    // Staged: stage that `scores` has: 0 raw, 1 capped, 2 masked.
    score_stage: u32,
    // Keys of a page, and width of the page table.
    page_size: u32,
    pages_per_item: u32,
    // Range of keys (rows, for dK and dV) of this step. With FLAG_ADDS, its results are merged into earlier ones.
    range_start: u32,
    range_end: u32,
    // Weights whose random word is below the threshold are dropped; the others are multiplied by the factor.
    dropout_threshold: u32,
    dropout_factor: f32,
    // Backward: offset and length of the copy of the tables, behind the row words.
    first_table: u32,
    table_words: u32,
    // Blocks of rows (keys, for dK and dV) per item; for varlen sequences, of all items together.
    item_blocks: u32,
    // Fused: offsets in rows of the (m, l) that this step writes, and of those that it merges with.
    stats_to: u32,
    stats_from: u32,
    // List of visible tiles: its first word, heads that share one, and words from one item's lists to the next (0: shared).
    list_start: u32,
    list_share: u32,
    list_item_words: u32,
    // Backward and key sums: first element of `sums` that a step writes.
    sums_start: u32,
    // Key sums: last rows of each item that are summed, at most.
    summed_rows: u32,
}
