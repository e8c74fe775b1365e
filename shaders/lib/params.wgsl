// Defines: Params, the uniform of every attention kernel, and the bits of its flags.
// Expects: nothing. The binding itself is declared by the prelude.
// See: src/shader/params.rs, field by field.

const FLAG_CAUSAL: u32 = 1u;
const FLAG_WINDOW_LEFT: u32 = 2u;
const FLAG_WINDOW_RIGHT: u32 = 4u;
const FLAG_KV_LENGTHS: u32 = 8u;
const FLAG_PREFIX: u32 = 16u;
const FLAG_BOTTOM_RIGHT: u32 = 32u;
const FLAG_PACKED: u32 = 64u;
const FLAG_SINKS: u32 = 128u;
const FLAG_BIAS: u32 = 256u;
const FLAG_MASK: u32 = 512u;
const FLAG_DOCUMENTS: u32 = 1024u;
const FLAG_RELATIVE_BIAS: u32 = 2048u;
const FLAG_ALIBI_SIGNED: u32 = 4096u;
const FLAG_ALIBI_SYMMETRIC: u32 = 8192u;
const FLAG_SOFTCAP_FIRST: u32 = 16384u;
const FLAG_SOFTCAP_LAST: u32 = 32768u;
const FLAG_PAGED: u32 = 65536u;
const FLAG_DROPOUT: u32 = 131072u;
const FLAG_STATS: u32 = 262144u;
const FLAG_ADDS: u32 = 524288u;

struct Params {
    // Strides of [batch, head, seq, dim] in elements; 0 along a broadcast axis.
    query_strides: vec4<u32>,
    key_strides: vec4<u32>,
    value_strides: vec4<u32>,
    output_strides: vec4<u32>,
    bias_strides: vec4<u32>,
    mask_strides: vec4<u32>,
    // First element of query, key, value, output.
    offsets: vec4<u32>,

    // Where each vector starts in `tables`.
    table_kv_lengths: u32,
    table_prefix_lengths: u32,
    table_documents_q: u32,
    table_documents_kv: u32,
    table_cu_seqlens_q: u32,
    table_cu_seqlens_kv: u32,
    table_alibi_slopes: u32,
    table_relative_bias: u32,
    table_sinks: u32,
    table_page_table: u32,
    // Seed (low word, high word), offset.
    table_dropout: u32,

    flags: u32,
    batch: u32,
    num_heads: u32,
    // Query heads that share a key/value head, and how many of them are packed as rows of one block: all or 1.
    group: u32,
    pack: u32,
    seq_len_q: u32,
    seq_len_kv: u32,
    // Position of row 0 among the keys, unless FLAG_BOTTOM_RIGHT says to compute it.
    position_offset: i32,
    window_left: i32,
    window_right: i32,
    max_distance: i32,
    scale: f32,
    softcap: f32,

    // The grid is linear; y counts lines of this width. A dispatch computes the workgroups first..end.
    grid_width: u32,
    first_workgroup: u32,
    end_workgroup: u32,
    // Key ranges that are computed apart and merged later, and how far apart their results lie.
    splits: u32,
    output_split_stride: u32,
    lse_split_stride: u32,
    // Staged: the part of the score matrix in this step: (batch, head) pairs from `first_pair`, of each the rows from
    // `first_row`, `row_count` of them.
    first_pair: u32,
    first_row: u32,
    row_count: u32,
    // Numbers of a query row and of a value row; general variants read them, special ones have them as constants.
    head_dim: u32,
    head_dim_v: u32,
    // Always 0, and no compiler knows: what keeps the loops of general variants from being unrolled.
    zero: u32,
    // Staged: which stage `scores` writes: 0 raw, 1 capped, 2 masked.
    score_stage: u32,
    // Keys of a page, and width of the page table.
    page_size: u32,
    pages_per_item: u32,
    // The keys that this step goes over (the rows, for dK and dV). With FLAG_ADDS what was computed of others is there, and this joins it.
    range_start: u32,
    range_end: u32,
    // A weight whose random word is below drops; the others are multiplied by the factor.
    dropout_threshold: u32,
    dropout_factor: f32,
    // Backward: where the copy of the tables starts behind the rows' ends, and how long it is.
    first_table: u32,
    table_words: u32,
    // Blocks of rows (keys, for dK and dV) of an item; of all items together where sequences are varlen.
    item_blocks: u32,
    // Fused: the rows in front of this step's (m, l), and of those that it joins.
    stats_to: u32,
    stats_from: u32,
}
