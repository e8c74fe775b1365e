//! Gradients of every engine: compared with central differences; the same bits in every run. (`properties` compares those of the
//! table and of random problems with the oracle.)

use crate::common::{Tested, cpu_and_adapters, gpus, report, variable};
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::plan::{DeviceClass, Specialise};
use wgpu_attention::verify::{Case, ExpectedGradients, Fill, Row, count, run_backward_case, table};
use wgpu_attention::{
    Alibi, Alignment, BackwardInputs, BroadcastShape, DType, Dims, Engine, HostVec, Inputs, Layout, Owner, Problem, Table, Term,
    WantGradients,
};

/// Runs specialised kernels in the shapes of two classes of device; each problem compiles its own.
#[test]
fn specialised_variants() {
    for class in [DeviceClass::Software, DeviceClass::Discrete] {
        println!("as on a device of class {class:?}:");
        let gpus = gpus(ShaderOptions { specialise: Specialise::Always, pretend: Some(class), ..Default::default() });
        let part = variable("ATTENTION_SPECIAL_PART", 80) as usize;
        let cases = table().expect("the table is valid").into_iter().step_by(part).chain(partly_masked());
        let candidates: Vec<_> = gpus.iter().map(Tested::candidate).collect();
        let rows: Vec<Row> = cases.flat_map(|case| run_backward_case(&case, &candidates).expect("the case is valid")).collect();
        report(&gpus, &rows);
        for backend in gpus.iter().filter(|backend| backend.engine.is_some()) {
            assert!(count(rows.iter().filter(|row| row.backend == backend.name))[0] > 0, "nothing ran on {}", backend.name);
        }
    }
}

/// Returns cases with NaN in partly visible tiles: keys that are visible to no row, and a few rows without visible keys.
fn partly_masked() -> [Case; 2] {
    let dims = Dims { batch: 2, num_heads: 2, num_kv_heads: 1, seq_len_q: 70, seq_len_kv: 50, head_dim: 24, head_dim_v: 40 };
    let mut keys = Problem::new(dims).aligned(Alignment::BottomRight).causal();
    keys.visibility.kv_lengths = true;
    let mut rows = Problem::new(Dims { seq_len_q: 300, seq_len_kv: 6, ..dims });
    rows.visibility.mask = Some(BroadcastShape([1, 1, 300, 6]));
    [("keys partly masked", keys), ("rows partly masked", rows)]
        .map(|(name, problem)| Case::new(name, problem, Fill::seed(5)).expect("a valid problem"))
}

/// Returns a small problem with everything that has a gradient.
fn small() -> Case {
    let dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 5, seq_len_kv: 7, head_dim: 6, head_dim_v: 4 };
    let mut problem = Problem::new(dims).aligned(Alignment::BottomRight).causal().with_lse();
    problem.softcap = Some(2.0);
    problem.bias = Some(BroadcastShape([1, 4, 5, 7]));
    problem.alibi = Some(Alibi::Signed);
    problem.relative_bias_max_distance = Some(2);
    problem.sinks = true;
    problem.dropout = Some(0.25);
    let score = "fn score(x: f32, at: Pair) -> f32 { return x * (1.0 + 0.2 * gain[0]) + rates[at.head] * f32(at.key) * 0.1; }";
    let tables = [Table::f32("gain", 1).owner(Owner::Scalar), Table::f32("rates", 4).owner(Owner::Head)];
    problem.user_terms.push(Term::with_tables(score, &tables).expect("valid"));
    Case::new("small", problem, Fill { poison: false, ..Fill::seed(11) }).expect("a valid problem")
}

/// Computes sum(output * d_output) in f64 from the engine's f32 output.
fn loss(engine: &Engine, case: &Case, d_output: &[f32]) -> f64 {
    let output = engine.attention(&case.problem, &case.data.inputs()).expect("a valid problem").output.to_f32();
    output.iter().zip(d_output).map(|(&x, &d)| f64::from(x) * f64::from(d)).sum()
}

/// Name of a tensor, its gradient, and a function that shifts one of its elements.
type Tensor<'a> = (&'static str, Vec<f32>, &'a dyn Fn(&mut Case, usize, f32));

/// Compares every engine's gradients with central differences of its own forward pass.
#[test]
fn gradients_are_central_differences() {
    for engine in cpu_and_adapters() {
        let case = small();
        let expected = ExpectedGradients::of(&case).expect("a valid problem");
        let d_output = expected.d_output.to_f32();
        let want = WantGradients::all(&case.problem);
        let got = engine.backward(&case.problem, &case.data.inputs(), &expected.inputs(), &want).expect("a valid problem");
        let wide = |gradient: Option<HostVec>| gradient.expect("it is wanted").into_f32();
        let of_f32 = |data: &mut HostVec, at: usize, x: f32| {
            let mut elements = data.to_f32();
            elements[at] += x;
            *data = HostVec::F32(elements);
        };
        let tensors: [Tensor<'_>; 7] = [
            ("query", wide(got.query), &|case, at, x| of_f32(&mut case.data.query, at, x)),
            ("key", wide(got.key), &|case, at, x| of_f32(&mut case.data.key, at, x)),
            ("value", wide(got.value), &|case, at, x| of_f32(&mut case.data.value, at, x)),
            ("bias", got.bias.expect("it is wanted"), &|case, at, x| case.data.bias[at] += x),
            ("relative_bias", got.relative_bias.expect("it is wanted"), &|case, at, x| case.data.relative_bias[at] += x),
            ("sinks", got.sinks.expect("they are wanted"), &|case, at, x| case.data.sinks[at] += x),
            ("term_tables", got.term_tables.expect("they are wanted"), &|case, at, x| {
                let word = &mut case.data.term_tables[at];
                *word = (f32::from_bits(*word) + x).to_bits();
            }),
        ];
        for (name, gradient, moved) in tensors {
            for at in (0..gradient.len()).step_by(gradient.len().div_ceil(12)) {
                const STEP: f32 = 1.0 / 64.0;
                let at_offset = |x: f32| {
                    let mut case = case.clone();
                    moved(&mut case, at, x);
                    loss(&engine, &case, &d_output)
                };
                let expected = (at_offset(STEP) - at_offset(-STEP)) / f64::from(2.0 * STEP);
                // Errors: the third derivative times STEP²/6, and the rounding of some ten terms divided by STEP.
                let error = (f64::from(gradient[at]) - expected).abs();
                assert!(error < 2e-3, "d{name}[{at}] is {}, differences are {expected} on {}", gradient[at], engine.chosen());
            }
        }
    }
}

/// Compares the bits of ten runs, on every core and every adapter, with tiles, tails and parts that are summed.
#[test]
fn ten_runs_give_the_same_bits() {
    let dims = Dims { num_heads: 4, num_kv_heads: 2, ..Dims::self_attention(1, 4, 150, 40) };
    let mut problem = Problem::new(dims).aligned(Alignment::TopLeft).causal().with_lse();
    problem.bias = Some(BroadcastShape([1, 1, 1, 150]));
    problem.relative_bias_max_distance = Some(20);
    problem.sinks = true;
    problem.dropout = Some(0.1);
    // Every kind of lines, and pairs.
    for (name, owner, len, index) in [
        ("heads", Owner::Head, 4, "at.head"),
        ("keys", Owner::Key, 150, "at.key"),
        ("distances", Owner::Distance, 8, "(at.position - at.key) / 32"),
        ("pairs", Owner::Pair, 150 * 150, "at.row * 150 + at.key"),
    ] {
        let text = format!("fn score(x: f32, at: Pair) -> f32 {{ return x + 0.5 * {name}[{index}]; }}");
        problem.user_terms.push(Term::with_tables(&text, &[Table::f32(name, len).owner(owner)]).expect("valid"));
    }
    let case = Case::new("bits", problem, Fill::seed(5)).expect("a valid problem");
    let expected = ExpectedGradients::of(&case).expect("a valid problem");
    for engine in cpu_and_adapters() {
        let run = || {
            let want = WantGradients { through_lse: expected.d_lse.is_some(), ..WantGradients::all(&case.problem) };
            engine.backward(&case.problem, &case.data.inputs(), &expected.inputs(), &want).expect("a valid problem")
        };
        let first = run();
        for again in 0..9 {
            assert_eq!(run(), first, "run {again} on {}", engine.chosen());
        }
    }
}

/// Refuses unsupported requests, and finds contradictions before anything is computed.
#[test]
fn refusals() {
    let problem = Problem::new(Dims::self_attention(1, 2, 4, 8));
    let data = vec![0.5f32; 64];
    let inputs = Inputs::new(&data, &data, &data);
    let stats = [[0.0f32, 1.0]; 8];
    let lse = [0.5f32; 8];
    let good = BackwardInputs { stats: Some(&stats), ..BackwardInputs::new(&data, &data) };
    for engine in cpu_and_adapters() {
        let refused = |problem: &Problem, backward: &BackwardInputs<'_>, want: &WantGradients| {
            engine.backward(problem, &inputs, backward, want).expect_err("it must be refused").to_string()
        };
        let want = WantGradients::default();
        assert!(engine.backward(&problem, &inputs, &good, &want).is_ok());
        assert!(refused(&problem, &BackwardInputs { stats: Some(&stats[1..]), ..good }, &want).contains("invalid `stats`"));
        assert!(refused(&problem, &BackwardInputs { d_output: (&data[1..]).into(), ..good }, &want).contains("invalid `d_output`"));
        assert!(refused(&problem, &BackwardInputs { d_lse: Some(&lse), ..good }, &want).contains("`WantGradients::through_lse`"));
        let through = WantGradients { through_lse: true, ..want };
        assert!(refused(&problem, &good, &through).contains("invalid `d_lse`: is missing"));
        assert!(refused(&problem, &BackwardInputs { d_lse: Some(&lse[1..]), ..good }, &through).contains("invalid `d_lse`: has"));
        assert!(refused(&problem, &BackwardInputs { output: (&data[1..]).into(), ..good }, &want).contains("invalid `output`"));
        assert!(refused(&problem, &good, &WantGradients { bias: true, ..want }).contains("invalid `bias`"));
        assert!(refused(&Problem { dropout: Some(1.0), ..problem.clone() }, &good, &want).contains("invalid `dropout`"));
        let mut shared = problem.clone();
        shared.key.layout = Layout::Strided(wgpu_attention::Strides { batch: 0, head: 0, seq: 8, dim: 1 });
        assert!(refused(&shared, &good, &want).contains("not supported"));
        assert!(engine.backward(&shared, &inputs, &good, &WantGradients { key: false, ..want }).is_ok());
        let f16 = problem.clone().stored(DType::F16, Layout::Bhsd);
        assert!(refused(&Problem { output: f16.output, ..problem.clone() }, &good, &want).contains("invalid `output`"));
    }
}
