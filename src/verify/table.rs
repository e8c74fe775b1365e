//! Fixed suite: named problems with every option, alone and combined, and with lengths at which tiled code breaks.

use crate::error::Result;
use crate::numbers::DType;
use crate::problem::{
    Alibi, Alignment, BroadcastShape, Dims, Layout, Paged, Problem, Returns, ScoreOrder, ScoreStage, Strides, TensorSpec, Varlen,
    Visibility,
};
use crate::verify::case::{Case, Extreme, Fill};
use crate::verify::generate::packed_qkv;
use Alignment::{BottomRight, Offset, TopLeft};

/// Lengths at the edges of tiles of 16, 32 and 64, besides 1 and 13.
const EDGES: [usize; 12] = [1, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129];

/// Sizes of most problems: 2 items, 4 query heads on 2 key heads, 13 rows, 21 keys, width 16.
const BASE: Dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 13, seq_len_kv: 21, head_dim: 16, head_dim_v: 16 };
/// Equal sizes, so that a transposed broadcast or a swapped axis still fits and shows only in the data.
const SQUARE: Dims = Dims { batch: 3, num_heads: 3, num_kv_heads: 3, seq_len_q: 17, seq_len_kv: 17, head_dim: 17, head_dim_v: 17 };

/// Builds the whole table.
pub fn table() -> Result<Vec<Case>> {
    let mut rows = Rows::new();
    lengths(&mut rows);
    visibility(&mut rows);
    scores(&mut rows);
    storage(&mut rows);
    together(&mut rows);
    paged(&mut rows);
    dropout(&mut rows);
    extremes(&mut rows);
    rows.into_iter()
        .enumerate()
        .map(|(at, (name, problem, fill))| Case::new(name, problem, Fill { seed: 1000 + at as u64, ..fill }))
        .collect()
}

/// Names, problems and fills; the seeds of the fills are set from their places in the table.
type Rows = Vec<(String, Problem, Fill)>;

fn base() -> Problem {
    Problem::new(BASE).with_lse()
}

fn with(change: impl FnOnce(&mut Problem)) -> Problem {
    let mut problem = base();
    change(&mut problem);
    problem
}

fn push(rows: &mut Rows, name: impl Into<String>, problem: Problem) {
    rows.push((name.into(), problem, Fill::seed(0)));
}

fn lengths(rows: &mut Rows) {
    for n in EDGES {
        push(rows, format!("square-{n}-d32"), Problem::new(Dims::self_attention(1, 2, n, 32)).with_lse());
        push(rows, format!("causal-{n}-d64"), Problem::new(Dims::self_attention(1, 1, n, 64)).aligned(TopLeft).causal().with_lse());
        let decode = Dims { num_heads: 4, num_kv_heads: 2, seq_len_q: 1, ..Dims::self_attention(2, 4, n, 32) };
        push(rows, format!("decode-{n}"), Problem::new(decode).with_lse());
        let rows_only = Dims { seq_len_kv: 16, seq_len_q: n, ..Dims::self_attention(1, 1, n, 16) };
        push(rows, format!("queries-{n}-keys-16"), Problem::new(rows_only).aligned(BottomRight).causal().with_lse());
    }
    for head_dim in [1, 2, 3, 4, 5, 8, 12, 24, 40, 64, 80, 96, 128, 160, 256] {
        push(rows, format!("head-dim-{head_dim}"), Problem::new(Dims::self_attention(1, 2, 19, head_dim)).with_lse());
    }
    for (head_dim, head_dim_v) in [(8, 40), (64, 1), (33, 128), (1, 64)] {
        push(rows, format!("widths-{head_dim}-{head_dim_v}"), Problem::new(Dims { head_dim, head_dim_v, ..BASE }).with_lse());
    }
    for (num_heads, num_kv_heads) in [(1, 1), (2, 1), (3, 1), (8, 1), (4, 2), (6, 3), (8, 2), (12, 4)] {
        push(rows, format!("heads-{num_heads}-on-{num_kv_heads}"), Problem::new(Dims { num_heads, num_kv_heads, ..BASE }).with_lse());
    }
    push(rows, "no-keys", Problem::new(Dims { seq_len_kv: 0, ..BASE }).with_lse());
    push(rows, "no-queries", Problem::new(Dims { seq_len_q: 0, ..BASE }).with_lse());
    push(rows, "no-keys-but-sinks", Problem { sinks: true, ..Problem::new(Dims { seq_len_kv: 0, ..BASE }).with_lse() });
    push(rows, "long-keys", Problem::new(Dims { seq_len_q: 3, seq_len_kv: 1031, ..Dims::self_attention(1, 2, 0, 8) }).with_lse());
    push(rows, "long-causal", Problem::new(Dims::self_attention(1, 1, 257, 8)).aligned(TopLeft).causal().with_lse());
}

fn visibility(rows: &mut Rows) {
    let tall = Dims { seq_len_q: 21, seq_len_kv: 13, ..BASE };
    for (alignment, name) in [(TopLeft, "top-left"), (BottomRight, "bottom-right"), (Offset(3), "offset-3"), (Offset(-4), "offset-minus-4")]
    {
        push(rows, format!("causal-{name}"), base().aligned(alignment).causal());
        push(rows, format!("causal-{name}-tall"), Problem::new(tall).with_lse().aligned(alignment).causal());
        for (left, right) in [(Some(3), Some(2)), (Some(0), Some(0)), (Some(5), None), (None, Some(1)), (Some(40), Some(40))] {
            let text = |side: Option<u32>| side.map_or("open".into(), |n| n.to_string());
            let window = base().aligned(alignment).window(left, right);
            push(rows, format!("window-{}-{}-{name}", text(left), text(right)), window);
        }
        push(rows, format!("causal-window-{name}"), base().aligned(alignment).window(Some(4), None).causal());
        for size in [1, 4, 5, 100] {
            let with_term = |change: fn(&mut Visibility, u32)| {
                let mut p = base();
                p.visibility.alignment = Some(alignment);
                change(&mut p.visibility, size);
                p
            };
            push(rows, format!("chunk-{size}-{name}"), with_term(|v, size| v.chunk = Some(size)));
            push(rows, format!("block-causal-{size}-{name}"), with_term(|v, size| v.block_causal = Some(size)));
        }
        push(rows, format!("causal-lengths-{name}"), {
            let mut p = base().aligned(alignment).causal();
            p.visibility.kv_lengths = true;
            p
        });
        push(rows, format!("causal-prefix-{name}"), {
            let mut p = base().aligned(alignment).causal();
            p.visibility.prefix_lengths = true;
            p
        });
    }
    push(rows, "nothing-visible", base().aligned(Offset(-100)).causal());
    push(rows, "nothing-visible-but-sinks", Problem { sinks: true, ..base().aligned(Offset(-100)).causal() });
    push(rows, "lengths", with(|p| p.visibility.kv_lengths = true));
    push(rows, "lengths-of-6-items", Problem { dims: Dims { batch: 6, ..BASE }, ..with(|p| p.visibility.kv_lengths = true) });
    push(rows, "segments", with(|p| p.visibility.segments = true));
    push(rows, "segments-causal", {
        let mut p = base().aligned(TopLeft).causal();
        p.visibility.segments = true;
        p
    });
    for shape in broadcasts(BASE) {
        push(rows, format!("mask-{:?}", shape.0), with(|p| p.visibility.mask = Some(shape)));
    }
    for shape in broadcasts(SQUARE) {
        push(rows, format!("mask-{:?}", shape.0), {
            let mut p = Problem::new(SQUARE).with_lse();
            p.visibility.mask = Some(shape);
            p
        });
    }
    for (alignment, name) in [(TopLeft, "top-left"), (BottomRight, "bottom-right")] {
        let varlen = Problem { varlen: Some(Varlen { tokens_q: 31, tokens_kv: 50 }), dims: Dims { batch: 4, ..BASE }, ..base() };
        push(rows, format!("varlen-causal-{name}"), varlen.aligned(alignment).causal());
        push(rows, format!("varlen-window-{name}"), varlen.aligned(alignment).window(Some(3), Some(1)));
        push(rows, format!("varlen-tokens-first-{name}"), varlen.stored(DType::F32, Layout::Bshd).aligned(alignment).causal());
    }
    push(rows, "varlen", Problem { varlen: Some(Varlen { tokens_q: 20, tokens_kv: 36 }), ..base() }.stored(DType::F32, Layout::Bshd));
}

/// Every shape that broadcasts to [batch, num_heads, seq_len_q, seq_len_kv].
fn broadcasts(dims: Dims) -> impl Iterator<Item = BroadcastShape> {
    let full = dims.scores_shape();
    (0..16u32).map(move |bits| BroadcastShape(std::array::from_fn(|axis| if bits >> axis & 1 == 1 { full[axis] } else { 1 })))
}

fn scores(rows: &mut Rows) {
    for scale in [0.0, 1.0, -0.5, 1e-6] {
        push(rows, format!("scale-{scale}"), with(|p| p.scale = Some(scale)));
    }
    for softcap in [0.5, 5.0, 50.0] {
        push(rows, format!("softcap-{softcap}"), with(|p| p.softcap = Some(softcap)));
    }
    for shape in broadcasts(BASE) {
        push(rows, format!("bias-{:?}", shape.0), with(|p| p.bias = Some(shape)));
    }
    for shape in broadcasts(SQUARE) {
        push(rows, format!("bias-{:?}", shape.0), Problem { bias: Some(shape), ..Problem::new(SQUARE).with_lse() });
    }
    let full_bias = Some(BroadcastShape(BASE.scores_shape()));
    for (order, name) in [(ScoreOrder::SoftcapThenBias, "softcap-then-bias"), (ScoreOrder::BiasThenSoftcap, "bias-then-softcap")] {
        let mut p = Problem { softcap: Some(1.5), score_order: order, bias: full_bias, ..base() };
        push(rows, name, p);
        p.alibi = Some(Alibi::Signed);
        p.visibility.alignment = Some(BottomRight);
        push(rows, format!("{name}-alibi"), p);
        for stage in [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Masked] {
            p.want = Returns { lse: true, scores: Some(stage), weights: true, ..Returns::default() };
            p.visibility.causal = true;
            push(rows, format!("{name}-hand-out-{stage:?}"), p);
        }
    }
    for alignment in [TopLeft, BottomRight, Offset(5)] {
        for alibi in [Alibi::Signed, Alibi::Symmetric] {
            push(
                rows,
                format!("alibi-{alibi:?}-{alignment:?}"),
                with(|p| (p.alibi, p.visibility.alignment) = (Some(alibi), Some(alignment))),
            );
        }
        push(
            rows,
            format!("relative-bias-{alignment:?}"),
            with(|p| {
                (p.relative_bias_max_distance, p.visibility.alignment) = (Some(4), Some(alignment));
            }),
        );
    }
    push(rows, "relative-bias-0", with(|p| (p.relative_bias_max_distance, p.visibility.alignment) = (Some(0), Some(TopLeft))));
    push(rows, "relative-bias-wide", with(|p| (p.relative_bias_max_distance, p.visibility.alignment) = (Some(64), Some(TopLeft))));
    push(rows, "sinks", with(|p| p.sinks = true));
    push(rows, "sinks-softcap-causal", Problem { sinks: true, softcap: Some(2.0), ..base().aligned(BottomRight).causal() });
    for stage in [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Masked] {
        let want = Returns { lse: true, scores: Some(stage), ..Returns::default() };
        push(rows, format!("hand-out-{stage:?}"), Problem { want, softcap: Some(3.0), ..base() });
    }
    push(rows, "hand-out-weights", with(|p| p.want.weights = true));
    push(rows, "hand-out-weights-with-sinks", with(|p| (p.want.weights, p.sinks) = (true, true)));
    push(
        rows,
        "hand-out-weights-causal",
        Problem { want: Returns { weights: true, ..Default::default() }, ..base().aligned(BottomRight).causal() },
    );
    // Scores in the hundreds and thousands, where exp without subtracting the max would overflow.
    for (name, problem, amplitude) in [
        ("large-logits", base(), 12.0),
        ("very-large-logits-causal", base().aligned(BottomRight).causal(), 60.0),
        ("large-logits-softcap", with(|p| p.softcap = Some(20.0)), 12.0),
        ("small-logits", base(), 1e-3),
    ] {
        rows.push((name.into(), problem, Fill { amplitude, ..Fill::seed(0) }));
    }
    // One NaN in query, key or value reaches the rows that it is visible to and no others.
    let nan = Fill { nan: true, ..Fill::seed(0) };
    for number in 0..6 {
        rows.push((format!("nan-{number}"), base(), nan));
        rows.push((format!("nan-causal-{number}"), base().aligned(BottomRight).causal(), nan));
        rows.push((format!("nan-window-sinks-{number}"), Problem { sinks: true, ..base().aligned(TopLeft).window(Some(2), Some(2)) }, nan));
    }
}

fn storage(rows: &mut Rows) {
    for dtype in DType::FLOATS {
        for (layout, name) in [(Layout::Bhsd, "bhsd"), (Layout::Bshd, "bshd")] {
            push(rows, format!("{dtype}-{name}"), base().stored(dtype, layout));
            push(rows, format!("{dtype}-{name}-causal-odd-width"), {
                Problem::new(Dims { head_dim: 23, head_dim_v: 9, ..BASE }).with_lse().aligned(BottomRight).causal().stored(dtype, layout)
            });
        }
        push(rows, format!("{dtype}-decode"), Problem::new(Dims { seq_len_q: 1, seq_len_kv: 67, ..BASE }).stored(dtype, Layout::Bshd));
        push(rows, format!("{dtype}-in-f32-out"), {
            let mut p = base().stored(dtype, Layout::Bhsd);
            p.output.dtype = DType::F32;
            p
        });
    }
    push(rows, "packed-qkv-view", {
        let part = BASE.num_kv_heads * BASE.head_dim; // equal head counts: num_heads == num_kv_heads
        let dims = Dims { num_heads: BASE.num_kv_heads, seq_len_q: BASE.seq_len_kv, ..BASE };
        let view = |at: usize| TensorSpec {
            dtype: DType::F32,
            layout: packed_qkv([dims.batch, dims.num_heads, dims.seq_len_q, dims.head_dim]),
            offset: at * part,
        };
        Problem { query: view(0), key: view(1), value: view(2), ..Problem::new(dims).with_lse() }
    });
    push(rows, "offsets", with(|p| (p.query.offset, p.key.offset, p.value.offset, p.output.offset) = (1, 3, 5, 7)));
    push(rows, "f16-odd-offsets", {
        let mut p = base().stored(DType::F16, Layout::Bshd);
        (p.query.offset, p.key.offset, p.value.offset, p.output.offset) = (1, 3, 5, 7);
        p
    });
    // [dim, seq, batch, heads] and a gap after every axis.
    let permuted = |heads: usize, seq: usize, batch: usize| {
        let head = 2;
        let item = head * heads + 1;
        let step = item * batch + 2;
        Layout::Strided(Strides { batch: item, head, seq: step, dim: step * seq + 3 })
    };
    push(
        rows,
        "permuted-with-gaps",
        with(|p| {
            p.query.layout = permuted(BASE.num_heads, BASE.seq_len_q, BASE.batch);
            p.key.layout = permuted(BASE.num_kv_heads, BASE.seq_len_kv, BASE.batch);
            p.value.layout = p.key.layout;
            p.output.layout = p.query.layout;
        }),
    );
    push(
        rows,
        "shared-keys",
        with(|p| {
            // One set of keys and values for all items and heads: strides of 0.
            p.key.layout = Layout::Strided(Strides { batch: 0, head: 0, seq: BASE.head_dim, dim: 1 });
            p.value.layout = p.key.layout;
        }),
    );
    push(rows, "mixed-layouts", with(|p| (p.key.layout, p.output.layout) = (Layout::Bshd, Layout::Bshd)));
}

fn together(rows: &mut Rows) {
    let full = BroadcastShape(BASE.scores_shape());
    let per_item = BroadcastShape([BASE.batch, 1, 1, BASE.seq_len_kv]);
    push(
        rows,
        "all-biases",
        with(|p| {
            (p.bias, p.alibi, p.relative_bias_max_distance) = (Some(full), Some(Alibi::Symmetric), Some(3));
            p.visibility.alignment = Some(BottomRight);
        }),
    );
    push(rows, "mask-and-bias", with(|p| (p.visibility.mask, p.bias) = (Some(per_item), Some(full))));
    push(rows, "mask-and-causal", {
        let mut p = base().aligned(TopLeft).causal();
        p.visibility.mask = Some(per_item);
        p
    });
    push(rows, "all-that-hides", {
        let mut p = base().aligned(BottomRight).window(Some(9), Some(3)).causal();
        p.visibility.kv_lengths = true;
        p.visibility.prefix_lengths = true;
        p.visibility.segments = true;
        p.visibility.mask = Some(full);
        p
    });
    push(rows, "decoder-of-a-serving-engine", {
        let dims = Dims { batch: 3, num_heads: 8, num_kv_heads: 2, seq_len_q: 1, seq_len_kv: 70, head_dim: 32, head_dim_v: 32 };
        let mut p = Problem::new(dims).with_lse().aligned(BottomRight).window(Some(31), None).causal().stored(DType::F16, Layout::Bshd);
        p.visibility.kv_lengths = true;
        p.sinks = true;
        p
    });
    push(rows, "varlen-everything", {
        let mut p = Problem { varlen: Some(Varlen { tokens_q: 30, tokens_kv: 41 }), dims: Dims { batch: 3, ..BASE }, ..base() };
        p = p.stored(DType::BF16, Layout::Bshd).aligned(BottomRight).window(Some(6), None).causal();
        (p.softcap, p.sinks, p.alibi) = (Some(8.0), true, Some(Alibi::Symmetric));
        p
    });
}

fn dropout(rows: &mut Rows) {
    for probability in [0.0, 0.1, 0.5, 0.9] {
        push(rows, format!("dropout-{probability}"), with(|p| p.dropout = Some(probability)));
    }
    push(rows, "dropout-causal-sinks-softcap", {
        let mut p = base().aligned(BottomRight).causal();
        (p.dropout, p.sinks, p.softcap) = (Some(0.25), true, Some(3.0));
        p
    });
    push(
        rows,
        "dropout-of-one-row",
        Problem { dropout: Some(0.25), ..Problem::new(Dims { seq_len_q: 1, seq_len_kv: 300, ..BASE }).with_lse() },
    );
    push(rows, "dropout-of-long-keys", Problem { dropout: Some(0.25), ..Problem::new(Dims { seq_len_kv: 300, ..BASE }).with_lse() });
    push(rows, "dropout-varlen", {
        let p = Problem { varlen: Some(Varlen { tokens_q: 30, tokens_kv: 41 }), dims: Dims { batch: 3, ..BASE }, ..base() };
        Problem { dropout: Some(0.25), ..p.stored(DType::F32, Layout::Bshd).aligned(TopLeft).causal() }
    });
    push(rows, "dropout-weights-handed-out", with(|p| (p.dropout, p.want.weights) = (Some(0.25), true)));
}

/// Problems of 3 items in pages of 1 to 256 keys; the pool has more pages than are used.
fn paged(rows: &mut Rows) {
    let dims = Dims { batch: 3, seq_len_kv: 70, ..BASE };
    let pool = |page_size: usize, dims: Dims| {
        let pages_per_item = dims.seq_len_kv.div_ceil(page_size) + 1;
        let mut p =
            Problem { paged: Some(Paged { page_size, pages: 3 * pages_per_item, pages_per_item }), ..Problem::new(dims).with_lse() };
        p.visibility.kv_lengths = true;
        p
    };
    for page_size in [1, 3, 16, 64, 256] {
        push(rows, format!("paged-{page_size}-nhd"), pool(page_size, dims).stored(DType::F32, Layout::Bshd));
        push(rows, format!("paged-{page_size}-hnd-causal"), pool(page_size, dims).aligned(BottomRight).causal());
        let decode = Dims { seq_len_q: 1, num_heads: 8, head_dim: 32, head_dim_v: 32, ..dims };
        push(
            rows,
            format!("paged-{page_size}-decode-f16"),
            pool(page_size, decode).aligned(BottomRight).causal().stored(DType::F16, Layout::Bshd),
        );
    }
    let varlen = Problem { varlen: Some(Varlen { tokens_q: 20, tokens_kv: 0 }), ..pool(8, dims) };
    push(rows, "paged-varlen-queries", varlen.aligned(BottomRight).causal());
    push(rows, "paged-varlen-window-sinks", {
        let p = Problem { sinks: true, softcap: Some(4.0), ..varlen.aligned(BottomRight).window(Some(20), Some(0)) };
        p.stored(DType::BF16, Layout::Bshd)
    });
    push(rows, "paged-long", pool(16, Dims { seq_len_q: 2, seq_len_kv: 1500, ..dims }).aligned(BottomRight).causal());
    push(
        rows,
        "paged-hand-out",
        Problem { want: Returns { lse: true, scores: Some(ScoreStage::Masked), weights: true, ..Returns::default() }, ..pool(8, dims) },
    );
    push(rows, "paged-segments", {
        let mut p = pool(8, dims);
        p.visibility.segments = true;
        p
    });
    // A pool whose pages each hold keys, then values.
    push(rows, "paged-keys-and-values-in-turns", {
        let mut p = pool(8, dims);
        let (row, half) = (BASE.num_kv_heads * BASE.head_dim, 8 * BASE.num_kv_heads * BASE.head_dim);
        p.key.layout = Layout::Strided(Strides { batch: 2 * half, head: BASE.head_dim, seq: row, dim: 1 });
        p.value = TensorSpec { offset: half, ..p.key };
        p
    });
}

/// Elements near the limits of f32, and sums of many equal ones.
fn extremes(rows: &mut Rows) {
    let mut push = |name: String, problem: Problem, extreme| rows.push((name, problem, Fill { extreme, ..Fill::seed(0) }));
    let decode = |keys: usize| Dims { seq_len_q: 1, seq_len_kv: keys, ..Dims::self_attention(1, 2, 0, 8) };
    for bias in [-1e9, f32::MIN, 1e9, 1e30] {
        for (name, dims) in [("", BASE), ("-decode", decode(1000))] {
            let padding = BroadcastShape([dims.batch, 1, 1, dims.seq_len_kv]);
            push(
                format!("all-biases-{bias:e}{name}"),
                Problem { bias: Some(padding), ..Problem::new(dims).with_lse() },
                Extreme::Bias(bias),
            );
        }
    }
    // The largest scores are 4183² * 16 / 4 = 7e7.
    for number in [30.0, 3000.0, 4183.0] {
        push(format!("all-queries-and-keys-{number}"), base(), Extreme::Scores(number));
        push(format!("all-queries-and-keys-{number}-causal"), base().aligned(BottomRight).causal(), Extreme::Scores(number));
        push(format!("all-queries-and-keys-{number}-decode"), Problem::new(decode(1000)).with_lse(), Extreme::Scores(number));
    }
    for factor in [1e30, 1e-39] {
        push(format!("values-{factor:e}"), base(), Extreme::Values(factor));
        push(format!("values-{factor:e}-decode"), Problem::new(decode(1000)).with_lse(), Extreme::Values(factor));
    }
    for (name, problem) in [
        ("", base()),
        ("-causal", base().aligned(BottomRight).causal()),
        ("-decode", Problem::new(decode(1000)).with_lse()),
        ("-long", Problem::new(Dims::self_attention(1, 1, 130, 64)).with_lse()),
    ] {
        push(format!("scores-overflow{name}"), problem, Extreme::Overflow);
    }
    // The farthest positions that a shader can count to; beyond them only the CPU path computes.
    for number in [1 << 29, -(1 << 29)] {
        let offset = Offset(number);
        push(
            format!("alibi-offset-{number}"),
            with(|p| (p.alibi, p.visibility.alignment) = (Some(Alibi::Symmetric), Some(offset))),
            Extreme::Nothing,
        );
        push(format!("window-all-offset-{number}"), base().aligned(offset).window(Some(u32::MAX), Some(u32::MAX)), Extreme::Nothing);
    }
    push(
        "one-key-huge-scale".into(),
        Problem { scale: Some(1e6), ..Problem::new(Dims { seq_len_kv: 1, ..BASE }).with_lse() },
        Extreme::Nothing,
    );
    push("equal-values-long".into(), Problem::new(Dims { seq_len_q: 2, ..decode(32_768) }).with_lse(), Extreme::All(0.1));
    push(
        "equal-values-long-decode".into(),
        Problem::new(Dims { num_heads: 1, num_kv_heads: 1, ..decode(32_768) }).with_lse(),
        Extreme::All(0.1),
    );
    push("statistics".into(), base().with_stats(), Extreme::Nothing);
    push("statistics-with-sinks".into(), Problem { sinks: true, ..base().aligned(BottomRight).causal().with_stats() }, Extreme::Nothing);
    push(
        "statistics-all-biases-f32-min".into(),
        Problem { bias: Some(BroadcastShape([1, 1, 1, 1])), ..base().with_stats() },
        Extreme::Bias(f32::MIN),
    );
}
