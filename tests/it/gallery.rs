//! The terms of examples/terms: each reads as WGSL, has the answer of the built-in option that it equals, and the
//! oracle's.

use std::collections::BTreeSet;
use std::path::Path;

use wgpu_attention::verify::{Case, CaseFile, Data, Fill, Verdict, check, check_backward};
use wgpu_attention::{
    Alibi, Alignment, Backend, BackwardInputs, BroadcastShape, Dims, Engine, EngineOptions, HostVec, Owner, Problem, Table, TableData,
    Term, WantGradients,
};

const HEADS: usize = 4;
const BATCH: usize = 2;
/// 8 rows of an image of width 16, and two halves of 4 blocks.
const TOKENS: usize = 128;
const WIDTH: usize = 16;
const SELF: Dims =
    Dims { batch: BATCH, num_heads: HEADS, num_kv_heads: 2, seq_len_q: TOKENS, seq_len_kv: TOKENS, head_dim: 16, head_dim_v: 16 };
/// 37 drafts after a text of 90 tokens.
const DRAFTS: Dims = Dims { seq_len_q: 37, seq_len_kv: 127, ..SELF };

enum Values {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U32(Vec<u32>),
}

/// A file of the gallery.
struct Entry {
    name: &'static str,
    dims: Dims,
    tables: Vec<(&'static str, Values)>,
    /// Gives a problem and its data the built-in options, or the boolean mask, that the term equals.
    built_in: Option<fn(&mut Problem, &mut Data)>,
}

fn entry(name: &'static str, tables: Vec<(&'static str, Values)>, built_in: Option<fn(&mut Problem, &mut Data)>) -> Entry {
    Entry { name, dims: SELF, tables, built_in }
}

fn prefix() -> Vec<i32> {
    vec![70, 5]
}

/// Three documents in the first item, two in the second; numbers ascend over both.
fn segment_ids() -> Vec<i32> {
    let document = |at: usize| if at < TOKENS { at / 50 } else { 7 + (at - TOKENS) / 101 };
    (0..BATCH * TOKENS).map(|at| document(at) as i32).collect()
}

fn slopes() -> Vec<f32> {
    (1..=HEADS).map(|head| 2f32.powf(-8.0 * head as f32 / HEADS as f32)).collect()
}

fn buckets() -> Vec<f32> {
    (0..HEADS * 32).map(|at| (at as f32 * 0.7).sin()).collect()
}

/// Bucket of a distance, as Hugging Face's T5 computes it.
fn t5_bucket(distance: i64) -> usize {
    let n = distance.unsigned_abs() as usize;
    let far = 8 + ((n as f64 / 8.0).ln() / 16f64.ln() * 8.0 + 1e-9) as usize;
    (if distance > 0 { 16 } else { 0 }) + if n < 8 { n } else { far.min(15) }
}

/// Sets a boolean mask of items, rows and keys.
fn mask(problem: &mut Problem, data: &mut Data, is_visible: impl Fn(usize, usize, usize) -> bool) {
    let Dims { batch, seq_len_q, seq_len_kv, .. } = problem.dims;
    problem.visibility.mask = Some(BroadcastShape([batch, 1, seq_len_q, seq_len_kv]));
    let rows = (0..batch * seq_len_q).map(|at| (at / seq_len_q, at % seq_len_q));
    data.mask =
        rows.flat_map(|(item, row)| (0..seq_len_kv).map(move |key| (item, row, key))).map(|(b, i, j)| is_visible(b, i, j)).collect();
}

fn in_prefix() -> Vec<u32> {
    (0..BATCH * TOKENS).map(|at| u32::from(at % 70 < 20)).collect()
}

/// Mask of BD3-LM: its three parts, on (block, is clean) of row and key.
fn block_diffusion(row: usize, key: usize) -> bool {
    let [(i, q_clean), (j, k_clean)] = [row, key].map(|at| (at % (TOKENS / 2) / 16, at >= TOKENS / 2));
    let diagonal = i == j && q_clean == k_clean;
    let offset_causal = i > j && k_clean && !q_clean;
    let block_causal = i >= j && k_clean && q_clean;
    diagonal || offset_causal || block_causal
}

/// True if a key is one of the five nearest tokens of a row along one axis, as NATTEN has them: at the edges, inwards.
fn is_neighbour(row: usize, key: usize, size: usize) -> bool {
    let centre = row.max(2).min(size - 3);
    key.abs_diff(centre) <= 2
}

/// Window and region of a token along one axis, after Swin's cyclic shift: tokens that the shift brought from the other
/// edge are a region of their own.
fn swin_place(at: usize, size: usize) -> (usize, usize) {
    let shifted = (at + size - 2) % size;
    let region = if shifted < size - 4 { 0 } else { 1 + usize::from(shifted >= size - 2) };
    (shifted / 4, region)
}

fn parent(draft: usize) -> Option<usize> {
    (draft > 0).then(|| draft * 7 % 11 % draft)
}

/// Bits of each draft's ancestors.
fn ancestors() -> Vec<u32> {
    let (rows, words) = (DRAFTS.seq_len_q, DRAFTS.seq_len_q.div_ceil(32));
    let mut bits = vec![0u32; rows * words];
    for row in 0..rows {
        if let Some(parent) = parent(row) {
            bits.copy_within(parent * words..(parent + 1) * words, row * words);
        }
        bits[row * words + row / 32] |= 1 << (row % 32);
    }
    bits
}

/// Masks of texts.
fn text_masks() -> Vec<Entry> {
    let segment_table = || ("segment_ids", Values::I32(segment_ids()));
    vec![
        entry("causal", vec![], Some(|p, _| p.visibility.causal = true)),
        entry(
            "window",
            vec![],
            Some(|p, _| (p.visibility.causal, p.visibility.window_left, p.visibility.window_right) = (true, Some(63), Some(0))),
        ),
        entry("window_sinks", vec![], Some(|p, data| mask(p, data, |_, i, j| j <= i && (j < 4 || i < j + 64)))),
        entry("chunked", vec![], Some(|p, _| (p.visibility.causal, p.visibility.chunk) = (true, Some(48)))),
        entry(
            "dilated",
            vec![],
            Some(|p, data| mask(p, data, |_, i, j| (0..).map(|step| j + 4 * step).take_while(|&at| at <= i).last() == Some(i))),
        ),
        entry(
            "prefix_lm",
            vec![("prefix", Values::I32(prefix()))],
            Some(|p, data| {
                (p.visibility.causal, p.visibility.prefix_lengths) = (true, true);
                data.prefix_lengths = prefix().into_iter().map(|length| length as u32).collect();
            }),
        ),
        entry(
            "documents",
            vec![segment_table()],
            Some(|p, data| {
                p.visibility.segments = true;
                (data.segment_ids_q, data.segment_ids_kv) = (segment_ids(), segment_ids());
            }),
        ),
        entry(
            "prefix_lm_documents",
            vec![segment_table(), ("in_prefix", Values::U32(in_prefix()))],
            Some(|p, data| {
                p.visibility.segments = true;
                (data.segment_ids_q, data.segment_ids_kv) = (segment_ids(), segment_ids());
                mask(p, data, |b, i, j| j <= i || in_prefix()[b * TOKENS + j] == 1);
            }),
        ),
    ]
}

/// Masks of blocks, images and trees.
fn other_masks() -> Vec<Entry> {
    vec![
        entry("block_diffusion", vec![], Some(|p, data| mask(p, data, |_, i, j| block_diffusion(i, j)))),
        entry(
            "neighbourhood_2d",
            vec![],
            Some(|p, data| {
                let near = |i, j| is_neighbour(i / WIDTH, j / WIDTH, TOKENS / WIDTH) && is_neighbour(i % WIDTH, j % WIDTH, WIDTH);
                mask(p, data, |_, i, j| near(i, j));
            }),
        ),
        entry(
            "swin_shifted",
            vec![],
            Some(|p, data| {
                let place = |at| (swin_place(at / WIDTH, TOKENS / WIDTH), swin_place(at % WIDTH, WIDTH));
                mask(p, data, |_, i, j| place(i) == place(j));
            }),
        ),
        Entry {
            dims: DRAFTS,
            ..entry(
                "tree_mask",
                vec![("ancestors", Values::U32(ancestors()))],
                Some(|p, data| {
                    let is_ancestor = |i, j| std::iter::successors(Some(i), |&at| parent(at)).any(|at| at == j);
                    mask(p, data, |_, i, j| j < 90 || is_ancestor(i, j - 90));
                }),
            )
        },
    ]
}

fn scores() -> Vec<Entry> {
    let per_head = |name, numbers: [f32; HEADS]| vec![(name, Values::F32(numbers.to_vec()))];
    vec![
        entry(
            "alibi",
            vec![("slopes", Values::F32(slopes()))],
            Some(|p, data| {
                p.alibi = Some(Alibi::Symmetric);
                data.alibi_slopes = slopes();
            }),
        ),
        entry(
            "relative_bias_t5",
            vec![("bias", Values::F32(buckets()))],
            Some(|p, data| {
                // The built-in table has a column per distance of the row from the key.
                let most = TOKENS as i64;
                p.relative_bias_max_distance = Some(TOKENS as u32);
                let of = |head: usize| (-most..=most).map(move |distance| buckets()[head * 32 + t5_bucket(-distance)]);
                data.relative_bias = (0..HEADS).flat_map(of).collect();
            }),
        ),
        entry("softcap", vec![], Some(|p, _| p.softcap = Some(30.0))),
        entry("tanh_gate", per_head("gates", [0.0, 0.5, -1.0, 2.0]), None),
        entry("head_temperature", per_head("temperatures", [0.5, 1.0, 2.0, 4.0]), None),
        entry(
            "distance_decay",
            per_head("log_rates", [-0.032, -0.016, -0.008, -0.004]),
            Some(|p, data| {
                (p.visibility.causal, p.alibi) = (true, Some(Alibi::Symmetric));
                data.alibi_slopes = vec![0.032, 0.016, 0.008, 0.004];
            }),
        ),
        entry("relu", vec![], None),
    ]
}

fn gallery() -> impl Iterator<Item = Entry> {
    text_masks().into_iter().chain(other_masks()).chain(scores())
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/terms")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(folder().join(name).with_extension("wgsl")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

impl Entry {
    fn term(&self) -> Term {
        let owner = if self.name == "relative_bias_t5" { Owner::Distance } else { Owner::Head };
        let table = |(name, values): &(&'static str, Values)| match values {
            Values::F32(values) => Table::f32(name, values.len()).owner(owner),
            Values::I32(values) if *name == "segment_ids" => Table::i32(name, values.len()).sorted(),
            Values::I32(values) => Table::i32(name, values.len()),
            Values::U32(values) => Table::u32(name, values.len()),
        };
        let tables: Vec<Table<'_>> = self.tables.iter().map(table).collect();
        Term::with_tables(&text(self.name), &tables).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn data(&self) -> Vec<(&str, TableData<'_>)> {
        self.tables
            .iter()
            .map(|(name, values)| match values {
                Values::F32(values) => (*name, TableData::F32(values)),
                Values::I32(values) => (*name, TableData::I32(values)),
                Values::U32(values) => (*name, TableData::U32(values)),
            })
            .collect()
    }

    /// A problem with the term, placed as the built-in option would place it.
    fn case(&self) -> Case {
        let alignment = if self.dims.seq_len_q == self.dims.seq_len_kv { Alignment::TopLeft } else { Alignment::BottomRight };
        let mut problem = Problem::new(self.dims).aligned(alignment).with_term(self.term());
        if !problem.uses_position() {
            problem.visibility.alignment = None;
        }
        let fill = Fill { poison: false, ..Fill::seed(9) };
        let mut case = Case::new(self.name, problem, fill).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        case.data.term_tables = case.problem.term_tables(&self.data()).expect("tables that fit");
        case
    }
}

fn cpu() -> Engine {
    Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() }).expect("the CPU is always there")
}

#[test]
fn every_file_is_listed_and_says_what_it_reads() {
    let entries: Vec<Entry> = gallery().collect();
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("the folder is there")
        .map(|file| file.expect("readable").path().file_stem().expect("a name").to_str().expect("UTF-8").to_string())
        .collect();
    assert_eq!(files, entries.iter().map(|entry| entry.name.to_string()).collect());
    for entry in entries {
        let text = text(entry.name);
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with("//")).collect();
        let header = header.join("\n");
        let tables = header.split("Tables: ").nth(1).unwrap_or_else(|| panic!("{} does not say its tables", entry.name));
        assert_eq!(tables.starts_with("none."), entry.tables.is_empty(), "{}", entry.name);
        for table in entry.term().tables() {
            let declared = format!("{} array<{:?}> [", table.name, table.ty).to_lowercase();
            assert!(tables.contains(&declared), "{}: `{declared}` is not in its header", entry.name);
        }
        assert!(text.lines().all(|line| line.len() <= 120), "{} has a line over 120 columns", entry.name);
    }
}

/// Each file has a case file with FlexAttention's answer to it, made from the text as it is now.
#[test]
fn every_file_has_the_answer_of_flex_attention() {
    for entry in gallery() {
        let name = format!("tests/data/flex/flex_term_{}.safetensors", entry.name);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&name);
        let file = CaseFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(file.attribute("term"), Some(&text(entry.name)[..]), "{name} is of another text: run tests/data/flex/make.py");
        for output in ["o", "lse", "dq", "dk", "dv"] {
            assert!(file.expects(output), "{name} has no {output}");
        }
    }
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{what}: element {at} is {got}, not {expected}");
    }
}

/// Output, lse, and the gradients of query, key and value.
fn answers(engine: &Engine, problem: &Problem, data: &Data) -> Vec<(&'static str, Vec<f32>)> {
    let problem = problem.clone().with_stats().with_lse();
    let forward = engine.attention(&problem, &data.inputs()).expect("a valid problem");
    let d_output: Vec<f32> = (0..problem.output_len()).map(|at| (at as f32 * 0.37).sin()).collect();
    let backward = BackwardInputs { stats: forward.stats.as_deref(), ..BackwardInputs::new(&forward.output, &d_output) };
    let gradients = engine.backward(&problem, &data.inputs(), &backward, &WantGradients::default()).expect("gradients");
    let wide = |gradient: Option<HostVec>| gradient.expect("wanted").to_f32();
    vec![
        ("output", forward.output.to_f32()),
        ("lse", forward.lse.expect("wanted")),
        ("d_query", wide(gradients.query)),
        ("d_key", wide(gradients.key)),
        ("d_value", wide(gradients.value)),
    ]
}

#[test]
fn terms_equal_the_built_in_options() {
    let engine = cpu();
    let mut compared = 0;
    for entry in gallery() {
        let Some(built_in) = entry.built_in else { continue };
        let case = entry.case();
        let mut problem = case.problem.clone();
        let mut data = case.data.clone();
        problem.user_terms.clear();
        problem.visibility.alignment = Some(Alignment::TopLeft);
        data.term_tables.clear();
        built_in(&mut problem, &mut data);
        if !problem.uses_position() {
            problem.visibility.alignment = None;
        }
        let (own, expected) = (answers(&engine, &case.problem, &case.data), answers(&engine, &problem, &data));
        for ((what, got), (_, expected)) in own.iter().zip(&expected) {
            assert_close(&format!("{} of {}", what, entry.name), got, expected);
        }
        compared += 1;
    }
    assert_eq!(compared, 16);
}

#[test]
fn terms_have_the_oracles_answers() {
    let engine = cpu();
    for entry in gallery() {
        let case = entry.case();
        let verdict = check(&case, &|problem, inputs| engine.attention(problem, inputs));
        assert_eq!(verdict, Verdict::Passed, "{}", entry.name);
        let verdict = check_backward(&case, &|problem, inputs, backward, want| engine.backward(problem, inputs, backward, want));
        assert_eq!(verdict, Verdict::Passed, "gradients of {}", entry.name);
    }
}
