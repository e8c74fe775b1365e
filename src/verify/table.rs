//! Fixed table: named problems with every option, alone and combined, and with lengths at which tiled code breaks.

use crate::custom::ARE_READ;
use crate::custom::{Table, Term};
use crate::error::Result;
use crate::numbers::DType;
use crate::problem::{
    Alibi, Alignment, BlockList, BroadcastShape, Dims, Layout, Paged, Problem, ScoreOrder, ScoreStage, Strides, SummedRows, TensorSpec,
    Varlen,
};
use crate::verify::case::{Case, Extreme, Fill};
use crate::verify::generate::packed_qkv;
use crate::verify::user_terms;
use Alignment::{BottomRight, Offset, TopLeft};
use SummedRows::{All, Last};

/// Lengths at the edges of tiles of 16, 32 and 64, besides 1 and 13.
const EDGES: [usize; 12] = [1, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129];

/// Sizes of most problems: 2 items, 4 query heads on 2 key heads, 13 rows, 21 keys, width 16.
const BASE: Dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 13, seq_len_kv: 21, head_dim: 16, head_dim_v: 16 };
/// Equal sizes, so that a transposed broadcast or a swapped axis still fits and shows only in the data.
const SQUARE: Dims = Dims { batch: 3, num_heads: 3, num_kv_heads: 3, seq_len_q: 17, seq_len_kv: 17, head_dim: 17, head_dim_v: 17 };

const STAGES: [ScoreStage; 3] = [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Masked];

/// Builds the whole table.
pub fn table() -> Result<Vec<Case>> {
    let mut rows = Rows(Vec::new());
    for part in
        [lengths, visibility, block_lists, scores, storage, quantised, rotated, together, paged, dropout, extremes, tables, key_sums]
    {
        part(&mut rows);
    }
    if ARE_READ {
        tile_lists(&mut rows)?;
    }
    let seeded = rows.0.into_iter().zip(1000..);
    seeded.map(|((name, problem, fill), seed)| Case::new(name, problem, Fill { seed, ..fill })).collect()
}

/// Names, problems and fills; the seed of a fill follows from its place in the table.
struct Rows(Vec<(String, Problem, Fill)>);

impl Rows {
    fn add(&mut self, name: impl Into<String>, problem: Problem) {
        self.0.push((name.into(), problem, Fill::seed(0)));
    }

    fn add_all<const N: usize>(&mut self, rows: [(&str, Problem); N]) {
        rows.into_iter().for_each(|(name, problem)| self.add(name, problem));
    }

    fn extreme(&mut self, name: impl Into<String>, problem: Problem, extreme: Extreme) {
        self.0.push((name.into(), problem, Fill { extreme, ..Fill::seed(0) }));
    }
}

const fn of(dims: Dims) -> Problem {
    Problem::new(dims).with_lse()
}

const fn base() -> Problem {
    of(BASE)
}

fn lengths(rows: &mut Rows) {
    for n in EDGES {
        rows.add(format!("square-{n}-d32"), of(Dims::self_attention(1, 2, n, 32)));
        rows.add(format!("causal-{n}-d64"), of(Dims::self_attention(1, 1, n, 64)).aligned(TopLeft).causal());
        rows.add(format!("decode-{n}"), of(Dims { num_kv_heads: 2, seq_len_q: 1, ..Dims::self_attention(2, 4, n, 32) }));
        let few_keys = Dims { seq_len_kv: 16, ..Dims::self_attention(1, 1, n, 16) };
        rows.add(format!("queries-{n}-keys-16"), of(few_keys).aligned(BottomRight).causal());
    }
    for head_dim in [1, 2, 3, 4, 5, 8, 12, 24, 40, 64, 80, 96, 128, 160, 256] {
        rows.add(format!("head-dim-{head_dim}"), of(Dims::self_attention(1, 2, 19, head_dim)));
    }
    for (head_dim, head_dim_v) in [(8, 40), (64, 1), (33, 128), (1, 64)] {
        rows.add(format!("widths-{head_dim}-{head_dim_v}"), of(Dims { head_dim, head_dim_v, ..BASE }));
    }
    for (num_heads, num_kv_heads) in [(1, 1), (2, 1), (3, 1), (8, 1), (4, 2), (6, 3), (8, 2), (12, 4)] {
        rows.add(format!("heads-{num_heads}-on-{num_kv_heads}"), of(Dims { num_heads, num_kv_heads, ..BASE }));
    }
    let no_keys = of(Dims { seq_len_kv: 0, ..BASE });
    rows.add_all([
        ("no-keys", no_keys.clone()),
        ("no-queries", of(Dims { seq_len_q: 0, ..BASE })),
        ("no-keys-but-sinks", no_keys.clone().sinks()),
        ("long-keys", of(Dims { seq_len_q: 3, ..Dims::self_attention(1, 2, 1031, 8) })),
        ("long-causal", of(Dims::self_attention(1, 1, 257, 8)).aligned(TopLeft).causal()),
    ]);
}

fn visibility(rows: &mut Rows) {
    let tall = of(Dims { seq_len_q: 21, seq_len_kv: 13, ..BASE });
    for (alignment, name) in [(TopLeft, "top-left"), (BottomRight, "bottom-right"), (Offset(3), "offset-3"), (Offset(-4), "offset-minus-4")]
    {
        let aligned = base().aligned(alignment);
        rows.add(format!("causal-{name}"), aligned.clone().causal());
        rows.add(format!("causal-{name}-tall"), tall.clone().aligned(alignment).causal());
        for (left, right) in [(Some(3), Some(2)), (Some(0), Some(0)), (Some(5), None), (None, Some(1)), (Some(40), Some(40))] {
            let text = |side: Option<u32>| side.map_or("open".into(), |n| n.to_string());
            rows.add(format!("window-{}-{}-{name}", text(left), text(right)), aligned.clone().window(left, right));
        }
        rows.add(format!("causal-window-{name}"), aligned.clone().window(Some(4), None).causal());
        for size in [1, 4, 5, 100] {
            rows.add(format!("chunk-{size}-{name}"), aligned.clone().chunk(size));
            rows.add(format!("block-causal-{size}-{name}"), aligned.clone().block_causal(size));
        }
        rows.add(format!("causal-lengths-{name}"), aligned.clone().causal().kv_lengths());
        rows.add(format!("causal-prefix-{name}"), aligned.clone().causal().prefix_lengths());
    }
    let nothing_visible = base().aligned(Offset(-100)).causal();
    rows.add_all([
        ("nothing-visible", nothing_visible.clone()),
        ("nothing-visible-but-sinks", nothing_visible.clone().sinks()),
        ("lengths", base().kv_lengths()),
        ("lengths-of-6-items", of(Dims { batch: 6, ..BASE }).kv_lengths()),
        ("segments", base().segments()),
        ("segments-causal", base().aligned(TopLeft).causal().segments()),
    ]);
    for (dims, shape) in broadcasts() {
        rows.add(format!("mask-{:?}", shape.0), of(dims).mask(shape));
    }
    for (alignment, name) in [(TopLeft, "top-left"), (BottomRight, "bottom-right")] {
        let varlen = of(Dims { batch: 4, ..BASE }).varlen(Varlen { tokens_q: 31, tokens_kv: 50 }).aligned(alignment);
        rows.add(format!("varlen-causal-{name}"), varlen.clone().causal());
        rows.add(format!("varlen-window-{name}"), varlen.clone().window(Some(3), Some(1)));
        rows.add(format!("varlen-tokens-first-{name}"), varlen.clone().stored(DType::F32, Layout::Bshd).causal());
    }
    rows.add("varlen", base().varlen(Varlen { tokens_q: 20, tokens_kv: 36 }).stored(DType::F32, Layout::Bshd));
}

fn block_lists(rows: &mut Rows) {
    let two = BlockList { batch: BASE.batch, heads: BASE.num_kv_heads, ..BlockList::new(4, 5) };
    let by_head = BlockList { heads: BASE.num_heads, ..BlockList::new(2, 3) };
    let long = of(Dims { seq_len_q: 70, seq_len_kv: 300, ..Dims::self_attention(1, 2, 70, 32) });
    let varlen = of(Dims { batch: 3, ..BASE }).varlen(Varlen { tokens_q: 30, tokens_kv: 41 }).stored(DType::F32, Layout::Bshd);
    let pool = of(Dims { batch: 3, seq_len_kv: 70, ..BASE }).paged(Paged { page_size: 8, pages: 27, pages_per_item: 9 });
    let decode = of(Dims { seq_len_q: 1, seq_len_kv: 700, ..BASE }).block_list(BlockList { heads: 2, ..BlockList::new(1, 16) });
    let masked = base().aligned(BottomRight).window(Some(9), Some(3)).causal().kv_lengths().segments();
    rows.add_all([
        ("block-list", base().block_list(BlockList::new(4, 4))),
        ("block-list-of-pairs", base().block_list(BlockList::new(1, 1))),
        ("block-list-by-item-and-group", base().block_list(two)),
        ("block-list-by-head", base().block_list(by_head)),
        ("block-list-of-one-tile", base().block_list(BlockList { batch: 2, heads: 4, ..BlockList::new(u32::MAX, u32::MAX) })),
        ("block-list-long", long.clone().block_list(BlockList { heads: 2, ..BlockList::new(64, 64) })),
        ("block-list-long-small-tiles", long.clone().block_list(BlockList::new(16, 3))),
        ("block-list-long-causal", long.clone().aligned(BottomRight).causal().block_list(BlockList::new(32, 32))),
        ("block-list-varlen", varlen.clone().block_list(BlockList { batch: 3, ..BlockList::new(4, 4) })),
        ("block-list-paged", pool.clone().aligned(BottomRight).causal().block_list(BlockList { batch: 3, heads: 4, ..two })),
        ("block-list-decode", decode.clone()),
        ("block-list-and-masks", masked.clone().mask(BroadcastShape([1, 4, 13, 21])).block_list(two)),
        ("block-list-softcap-bias", base().softcap(2.0).bias(BroadcastShape(BASE.scores_shape())).block_list(by_head)),
    ]);
}

/// Users' masks whose arithmetic cannot tell what they show of a tile, so that lists of visible tiles are built: for all
/// heads and items, or for some.
fn tile_lists(rows: &mut Rows) -> Result<()> {
    let dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 130, seq_len_kv: 200, head_dim: 16, head_dim_v: 16 };
    let masked = |p: Problem, index: &str| {
        let text = format!("fn visible(at: Pair) -> bool {{ return words[({index}) % 35] % 4u == 0u; }}");
        Term::with_tables(&text, &[Table::u32("words", 35)]).map(|mask| p.with_term(mask))
    };
    let tile = "at.row / 32 * 7 + at.key / 32";
    let (p, aligned) = (of(dims), of(dims).aligned(BottomRight));
    let pool = of(Dims { seq_len_kv: 130, ..dims }).paged(Paged { page_size: 16, pages: 20, pages_per_item: 9 });
    let list = BlockList { heads: 2, ..BlockList::new(48, 16) };
    let by_item = p.clone().kv_lengths().segments().mask(BroadcastShape([1, 1, 130, 200]));
    rows.add("tile-list", masked(p.clone(), tile)?);
    rows.add("tile-list-of-pairs", masked(p.clone(), "at.row * 3 + at.key")?);
    rows.add("tile-list-by-group", masked(p.clone(), "at.kv_head + at.row / 32 + at.key / 32")?);
    rows.add("tile-list-by-head-and-item", masked(p.clone(), "at.head + at.row / 50 + at.key / 50 * at.batch")?);
    rows.add("tile-list-causal-window", masked(aligned.causal().window(Some(99), None), tile)?);
    rows.add("tile-list-of-padded-items", masked(by_item.aligned(TopLeft).block_causal(20), tile)?);
    rows.add("tile-list-and-block-list", masked(p.clone().block_list(list).softcap(3.0), tile)?);
    rows.add("tile-list-paged", masked(pool.aligned(BottomRight).causal(), tile)?);
    Ok(())
}

/// Every shape that broadcasts to [batch, num_heads, seq_len_q, seq_len_kv] of `BASE`, then of `SQUARE`.
fn broadcasts() -> impl Iterator<Item = (Dims, BroadcastShape)> {
    [BASE, SQUARE].into_iter().flat_map(|dims| {
        let full = dims.scores_shape();
        let shape = move |bits: u32| std::array::from_fn(|axis| if bits >> axis & 1 == 1 { full[axis] } else { 1 });
        (0..16).map(move |bits| (dims, BroadcastShape(shape(bits))))
    })
}

fn scores(rows: &mut Rows) {
    for scale in [0.0, 1.0, -0.5, 1e-6] {
        rows.add(format!("scale-{scale}"), base().scale(scale));
    }
    for softcap in [0.5, 5.0, 50.0] {
        rows.add(format!("softcap-{softcap}"), base().softcap(softcap));
    }
    for (dims, shape) in broadcasts() {
        rows.add(format!("bias-{:?}", shape.0), of(dims).bias(shape));
    }
    for (score_order, name) in [(ScoreOrder::SoftcapThenBias, "softcap-then-bias"), (ScoreOrder::BiasThenSoftcap, "bias-then-softcap")] {
        let both = Problem { score_order, ..base().softcap(1.5).bias(BroadcastShape(BASE.scores_shape())) };
        let aligned = both.clone().alibi(Alibi::Signed).aligned(BottomRight);
        rows.add(name, both.clone());
        rows.add(format!("{name}-alibi"), aligned.clone());
        for stage in STAGES {
            rows.add(format!("{name}-hand-out-{stage:?}"), aligned.clone().causal().with_scores(stage).with_weights());
        }
    }
    for alignment in [TopLeft, BottomRight, Offset(5)] {
        for alibi in [Alibi::Signed, Alibi::Symmetric] {
            rows.add(format!("alibi-{alibi:?}-{alignment:?}"), base().alibi(alibi).aligned(alignment));
        }
        rows.add(format!("relative-bias-{alignment:?}"), base().relative_bias(4).aligned(alignment));
    }
    let causal = base().aligned(BottomRight).causal();
    rows.add_all([
        ("relative-bias-0", base().relative_bias(0).aligned(TopLeft)),
        ("relative-bias-wide", base().relative_bias(64).aligned(TopLeft)),
        ("sinks", base().sinks()),
        ("sinks-softcap-causal", causal.clone().sinks().softcap(2.0)),
    ]);
    for stage in STAGES {
        rows.add(format!("hand-out-{stage:?}"), base().softcap(3.0).with_scores(stage));
    }
    rows.add_all([
        ("hand-out-weights", base().with_weights()),
        ("hand-out-weights-with-sinks", base().sinks().with_weights()),
        ("hand-out-weights-causal", Problem::new(BASE).aligned(BottomRight).causal().with_weights()),
    ]);
    // Scores in the hundreds and thousands, where exp without subtracting the max would overflow.
    for (name, problem, amplitude) in [
        ("large-logits", base(), 12.0),
        ("very-large-logits-causal", causal.clone(), 60.0),
        ("large-logits-softcap", base().softcap(20.0), 12.0),
        ("small-logits", base(), 1e-3),
    ] {
        rows.0.push((name.into(), problem, Fill { amplitude, ..Fill::seed(0) }));
    }
    // One NaN in query, key or value reaches the rows that it is visible to and no others.
    let window = base().aligned(TopLeft).window(Some(2), Some(2)).sinks();
    for number in 0..6 {
        for (name, problem) in [("nan", base()), ("nan-causal", causal.clone()), ("nan-window-sinks", window.clone())] {
            rows.0.push((format!("{name}-{number}"), problem, Fill { nan: true, ..Fill::seed(0) }));
        }
    }
}

fn storage(rows: &mut Rows) {
    for dtype in DType::FLOATS {
        for (layout, name) in [(Layout::Bhsd, "bhsd"), (Layout::Bshd, "bshd")] {
            let odd = of(Dims { head_dim: 23, head_dim_v: 9, ..BASE }).aligned(BottomRight).causal();
            rows.add(format!("{dtype}-{name}"), base().stored(dtype, layout));
            rows.add(format!("{dtype}-{name}-causal-odd-width"), odd.stored(dtype, layout));
        }
        let decode = Problem::new(Dims { seq_len_q: 1, seq_len_kv: 67, ..BASE });
        rows.add(format!("{dtype}-decode"), decode.stored(dtype, Layout::Bshd));
        rows.add(format!("{dtype}-in-f32-out"), Problem { output: base().output, ..base().stored(dtype, Layout::Bhsd) });
    }
    let packed = Dims::self_attention(BASE.batch, BASE.num_kv_heads, BASE.seq_len_kv, BASE.head_dim);
    let layout = packed_qkv([packed.batch, packed.num_heads, packed.seq_len_q, packed.head_dim]);
    let view = |at: usize| TensorSpec { dtype: DType::F32, layout, offset: at * packed.num_heads * packed.head_dim };
    let offsets = |mut p: Problem| {
        (p.query.offset, p.key.offset, p.value.offset, p.output.offset) = (1, 3, 5, 7);
        p
    };
    // [dim, seq, batch, heads] and a gap after every axis.
    let permuted = |heads: usize, seq: usize| {
        let (head, item) = (2, 2 * heads + 1);
        let step = item * BASE.batch + 2;
        TensorSpec::new(DType::F32, Layout::Strided(Strides { batch: item, head, seq: step, dim: step * seq + 3 }))
    };
    let (of_rows, of_keys) = (permuted(BASE.num_heads, BASE.seq_len_q), permuted(BASE.num_kv_heads, BASE.seq_len_kv));
    // One set of keys and values for all items and heads: strides of 0.
    let shared = TensorSpec::new(DType::F32, Layout::Strided(Strides { batch: 0, head: 0, seq: BASE.head_dim, dim: 1 }));
    let tokens_first = TensorSpec::new(DType::F32, Layout::Bshd);
    rows.add_all([
        ("packed-qkv-view", Problem { query: view(0), key: view(1), value: view(2), ..of(packed) }),
        ("offsets", offsets(base())),
        ("f16-odd-offsets", offsets(base().stored(DType::F16, Layout::Bshd))),
        ("permuted-with-gaps", Problem { query: of_rows, key: of_keys, value: of_keys, output: of_rows, ..base() }),
        ("shared-keys", Problem { key: shared, value: shared, ..base() }),
        ("mixed-layouts", Problem { key: tokens_first, output: tokens_first, ..base() }),
    ]);
}

/// Keys and values of different types, of which one or both are quantised: prefill, decode, and in pages.
fn quantised(rows: &mut Rows) {
    let types =
        [(DType::Q8, DType::Q4), (DType::Q4, DType::Q8), (DType::F16, DType::Q4), (DType::Q4, DType::F32), (DType::BF16, DType::Q8)];
    for (key, value) in types {
        let dims = Dims { head_dim: 64, head_dim_v: 32, seq_len_kv: 70, ..BASE };
        let stored = |problem: Problem| Problem {
            key: TensorSpec::new(key, Layout::Bshd),
            value: TensorSpec::new(value, Layout::Bshd),
            ..problem.aligned(BottomRight).causal()
        };
        let decode = Dims { seq_len_q: 1, ..dims };
        let pages = Paged { page_size: 16, pages: 12, pages_per_item: 5 };
        rows.add(format!("{key}-keys-{value}-values"), stored(of(dims)));
        rows.add(format!("{key}-keys-{value}-values-paged-decode"), stored(of(decode).paged(pages)));
    }
}

/// Keys and values that are stored rotated, in blocks of every width.
fn rotated(rows: &mut Rows) {
    let of = |head_dim: usize, head_dim_v: usize| of(Dims { head_dim, head_dim_v, ..BASE }).aligned(BottomRight).causal();
    for (head_dim, head_dim_v) in [(32, 128), (96, 32), (128, 64), (192, 256), (576, 512)] {
        rows.add(format!("rotated-{head_dim}-{head_dim_v}"), of(head_dim, head_dim_v).hadamard(true, true));
    }
    let decode = Problem::new(Dims { seq_len_q: 1, seq_len_kv: 600, head_dim: 64, head_dim_v: 128, ..BASE });
    let blocks = |dtype| TensorSpec::new(dtype, Layout::Bshd);
    let decode = Problem { key: blocks(DType::Q8), value: blocks(DType::Q4), ..decode };
    let pages = Paged { page_size: 16, pages: 80, pages_per_item: 40 };
    rows.add_all([
        ("rotated-keys", of(64, 64).hadamard(true, false)),
        ("rotated-values", of(64, 64).hadamard(false, true)),
        ("rotated-f16", of(64, 64).stored(DType::F16, Layout::Bshd).hadamard(true, true)),
        ("rotated-blocks-decode", decode.clone().hadamard(true, true)),
        ("rotated-blocks-paged-decode-sinks", decode.paged(pages).sinks().with_stats().hadamard(true, true)),
        ("rotated-hand-out", of(64, 96).with_scores(ScoreStage::Masked).with_weights().hadamard(true, true)),
        (
            "rotated-varlen",
            of(32, 64).varlen(Varlen { tokens_q: 20, tokens_kv: 36 }).stored(DType::BF16, Layout::Bshd).hadamard(true, true),
        ),
    ]);
}

fn together(rows: &mut Rows) {
    let full = BroadcastShape(BASE.scores_shape());
    let per_item = BroadcastShape([BASE.batch, 1, 1, BASE.seq_len_kv]);
    let masked = base().aligned(BottomRight).window(Some(9), Some(3)).causal().kv_lengths().prefix_lengths().segments();
    let serving = of(Dims { batch: 3, num_heads: 8, num_kv_heads: 2, seq_len_q: 1, seq_len_kv: 70, head_dim: 32, head_dim_v: 32 });
    let serving = serving.stored(DType::F16, Layout::Bshd).aligned(BottomRight).window(Some(31), None).causal();
    let varlen = of(Dims { batch: 3, ..BASE }).varlen(Varlen { tokens_q: 30, tokens_kv: 41 }).stored(DType::BF16, Layout::Bshd);
    let varlen = varlen.clone().aligned(BottomRight).window(Some(6), None).causal();
    rows.add_all([
        ("all-biases", base().bias(full).alibi(Alibi::Symmetric).relative_bias(3).aligned(BottomRight)),
        ("mask-and-bias", base().mask(per_item).bias(full)),
        ("mask-and-causal", base().aligned(TopLeft).causal().mask(per_item)),
        ("everything-that-masks", masked.mask(full)),
        ("decoder-of-a-serving-engine", serving.kv_lengths().sinks()),
        ("varlen-everything", varlen.clone().softcap(8.0).sinks().alibi(Alibi::Symmetric)),
    ]);
}

/// Gradients of the tables of users' terms, alone and with other options, whole and varlen.
fn tables(rows: &mut Rows) {
    if !ARE_READ {
        return;
    }
    let varlen = of(Dims { batch: 3, ..BASE }).varlen(Varlen { tokens_q: 30, tokens_kv: 41 }).stored(DType::BF16, Layout::Bshd);
    let long = of(Dims { seq_len_q: 40, seq_len_kv: 70, ..BASE });
    for (kind, problem) in [("", base().dropout(0.1)), ("-long", long), ("-varlen", varlen.clone())] {
        for (name, problem) in user_terms::owned(&problem) {
            rows.add(format!("{name}{kind}"), problem);
        }
    }
}

fn dropout(rows: &mut Rows) {
    for probability in [0.0, 0.1, 0.5, 0.9] {
        rows.add(format!("dropout-{probability}"), base().dropout(probability));
    }
    let varlen = of(Dims { batch: 3, ..BASE }).varlen(Varlen { tokens_q: 30, tokens_kv: 41 }).stored(DType::F32, Layout::Bshd);
    rows.add_all([
        ("dropout-causal-sinks-softcap", base().aligned(BottomRight).causal().sinks().softcap(3.0).dropout(0.25)),
        ("dropout-of-one-row", of(Dims { seq_len_q: 1, seq_len_kv: 300, ..BASE }).dropout(0.25)),
        ("dropout-of-long-keys", of(Dims { seq_len_kv: 300, ..BASE }).dropout(0.25)),
        ("dropout-varlen", varlen.clone().aligned(TopLeft).causal().dropout(0.25)),
        ("dropout-weights-handed-out", base().with_weights().dropout(0.25)),
    ]);
}

/// Problems of 3 items in pages of 1 to 256 keys; the pool has more pages than are used.
fn paged(rows: &mut Rows) {
    let dims = Dims { batch: 3, seq_len_kv: 70, ..BASE };
    let pool = |page_size: usize, dims: Dims| {
        let pages_per_item = dims.seq_len_kv.div_ceil(page_size) + 1;
        of(dims).paged(Paged { page_size, pages: 3 * pages_per_item, pages_per_item })
    };
    let decode = Dims { seq_len_q: 1, num_heads: 8, head_dim: 32, head_dim_v: 32, ..dims };
    for page_size in [1, 3, 16, 64, 256] {
        rows.add(format!("paged-{page_size}-nhd"), pool(page_size, dims).stored(DType::F32, Layout::Bshd));
        rows.add(format!("paged-{page_size}-hnd-causal"), pool(page_size, dims).aligned(BottomRight).causal());
        let decode = pool(page_size, decode).aligned(BottomRight).causal();
        rows.add(format!("paged-{page_size}-decode-f16"), decode.stored(DType::F16, Layout::Bshd));
    }
    let varlen = pool(8, dims).varlen(Varlen { tokens_q: 20, tokens_kv: 0 }).aligned(BottomRight);
    let window = varlen.clone().stored(DType::BF16, Layout::Bshd).window(Some(20), Some(0)).sinks().softcap(4.0);
    // Each page holds keys, then values.
    let (seq, half) = (BASE.num_kv_heads * BASE.head_dim, 8 * BASE.num_kv_heads * BASE.head_dim);
    let key = TensorSpec::new(DType::F32, Layout::Strided(Strides { batch: 2 * half, head: BASE.head_dim, seq, dim: 1 }));
    rows.add_all([
        ("paged-varlen-queries", varlen.clone().causal()),
        ("paged-varlen-window-sinks", window.clone()),
        ("paged-long", pool(16, Dims { seq_len_q: 2, seq_len_kv: 1500, ..dims }).aligned(BottomRight).causal()),
        ("paged-hand-out", pool(8, dims).with_scores(ScoreStage::Masked).with_weights()),
        ("paged-segments", pool(8, dims).segments()),
        ("paged-keys-and-values-in-turns", Problem { key, value: TensorSpec { offset: half, ..key }, ..pool(8, dims) }),
    ]);
}

/// Sums of each key's weights, over all rows and over the last ones.
fn key_sums(rows: &mut Rows) {
    let causal = base().aligned(BottomRight).causal();
    let varlen = of(Dims { batch: 3, ..BASE }).varlen(Varlen { tokens_q: 30, tokens_kv: 41 }).stored(DType::F16, Layout::Bshd);
    let paged = |dims: Dims| of(Dims { batch: 3, ..dims }).paged(Paged { page_size: 8, pages: 12, pages_per_item: 3 });
    let mask = BroadcastShape([BASE.batch, 1, BASE.seq_len_q, BASE.seq_len_kv]);
    let quantised = Dims { head_dim: 32, head_dim_v: 32, ..BASE };
    let blocks = TensorSpec::new(DType::Q8, Layout::Bshd);
    for summed in [All, Last(1), Last(5)] {
        let mut add = |name: &str, problem: Problem| rows.add(format!("key-sums-{name}-{summed:?}"), problem.with_key_sums(summed));
        add("plain", base());
        add("causal-sinks", causal.clone().sinks());
        add("window", causal.clone().window(Some(4), None));
        add("mask-softcap", base().mask(mask).softcap(3.0));
        add("bias-alibi", base().bias(mask).alibi(Alibi::Signed).aligned(BottomRight));
        add("varlen", varlen.clone().aligned(BottomRight).causal());
        add("paged", paged(BASE).aligned(BottomRight).causal());
        add("decode", paged(Dims { seq_len_q: 1, num_heads: 8, ..BASE }).stored(DType::F16, Layout::Bshd));
        add("quantised", Problem { key: blocks, value: blocks, ..of(quantised) });
        add("and-statistics", base().sinks().with_stats());
    }
    rows.add_all([
        ("key-sums-dropout", base().dropout(0.5).with_key_sums(All)),
        ("key-sums-of-no-row", base().with_key_sums(Last(0))),
        ("key-sums-of-more-rows-than-exist", base().with_key_sums(Last(100))),
        ("key-sums-beside-weights", base().with_weights().with_key_sums(All)),
        ("key-sums-of-many-rows", of(Dims { num_kv_heads: 1, seq_len_q: 300, ..BASE }).with_key_sums(All)),
        ("key-sums-of-long-keys", of(Dims { seq_len_q: 2, seq_len_kv: 2500, ..BASE }).with_key_sums(All)),
        ("key-sums-decode-long-keys", of(Dims { seq_len_q: 1, seq_len_kv: 2500, ..BASE }).sinks().with_key_sums(Last(1))),
    ]);
    let nan = of(BASE).aligned(TopLeft).window(Some(2), Some(2)).with_key_sums(All);
    rows.0.push(("key-sums-nan".into(), nan, Fill { nan: true, ..Fill::seed(0) }));
    rows.extreme("key-sums-scores-3000", base().with_key_sums(All), Extreme::Scores(3000.0));
    rows.extreme("key-sums-overflow", causal.with_key_sums(All), Extreme::Overflow);
}

/// Elements near the limits of f32, and sums of many equal ones.
fn extremes(rows: &mut Rows) {
    let decode = |keys: usize| Dims { seq_len_q: 1, ..Dims::self_attention(1, 2, keys, 8) };
    let causal = base().aligned(BottomRight).causal();
    for bias in [-1e9, f32::MIN, 1e9, 1e30] {
        for (name, dims) in [("", BASE), ("-decode", decode(1000))] {
            let padding = BroadcastShape([dims.batch, 1, 1, dims.seq_len_kv]);
            rows.extreme(format!("all-biases-{bias:e}{name}"), of(dims).bias(padding), Extreme::Bias(bias));
        }
    }
    // The largest scores are 4183² * 16 / 4 = 7e7.
    for number in [30.0, 3000.0, 4183.0] {
        for (name, problem) in [("", base()), ("-causal", causal.clone()), ("-decode", of(decode(1000)))] {
            rows.extreme(format!("all-queries-and-keys-{number}{name}"), problem, Extreme::Scores(number));
        }
    }
    for factor in [1e30, 1e-39] {
        for (name, problem) in [("", base()), ("-decode", of(decode(1000)))] {
            rows.extreme(format!("values-{factor:e}{name}"), problem, Extreme::Values(factor));
        }
    }
    let long = of(Dims::self_attention(1, 1, 130, 64));
    for (name, problem) in [("", base()), ("-causal", causal.clone()), ("-decode", of(decode(1000))), ("-long", long)] {
        rows.extreme(format!("scores-overflow{name}"), problem, Extreme::Overflow);
    }
    // The farthest positions that a shader can count to; beyond them only the CPU path computes.
    for number in [1 << 29, -(1 << 29)] {
        let aligned = base().aligned(Offset(number));
        rows.add(format!("alibi-offset-{number}"), aligned.clone().alibi(Alibi::Symmetric));
        rows.add(format!("window-all-offset-{number}"), aligned.clone().window(Some(u32::MAX), Some(u32::MAX)));
    }
    rows.add("one-key-huge-scale", of(Dims { seq_len_kv: 1, ..BASE }).scale(1e6));
    let long = decode(32_768);
    rows.extreme("equal-values-long", of(Dims { seq_len_q: 2, ..long }), Extreme::All(0.1));
    rows.extreme("equal-values-long-decode", of(Dims { num_heads: 1, num_kv_heads: 1, ..long }), Extreme::All(0.1));
    rows.add("statistics", base().with_stats());
    rows.add("statistics-with-sinks", causal.clone().sinks().with_stats());
    rows.extreme("statistics-all-biases-f32-min", base().bias(BroadcastShape([1; 4])).with_stats(), Extreme::Bias(f32::MIN));
}
