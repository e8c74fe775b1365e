//! Absurd sizes give errors and empty problems give empty answers: never a panic, an abort or a hang.

use crate::common::open;
use wgpu_attention::cache::{CacheShape, KvCache, LayerShape};
use wgpu_attention::gpu::{TableVector, Tables};
use wgpu_attention::plan::{DeviceCaps, Plan};
use wgpu_attention::rotary::{Pairing, Rotary, Scaling};
use wgpu_attention::{
    Algorithm, Alibi, Alignment, Backend, BackwardInputs, BroadcastShape, DType, Dims, Engine, Error, HostVec, Inputs, Layout, Problem,
    Strides, TensorSpec, Varlen, WantGradients,
};

const MAX: usize = usize::MAX;
const SMALL: Dims = Dims { batch: 1, num_heads: 2, num_kv_heads: 1, seq_len_q: 3, seq_len_kv: 5, head_dim: 4, head_dim_v: 4 };

fn engines() -> [Engine; 2] {
    [Backend::Cpu, Backend::Oracle].map(open)
}

/// Creates query, key and value with the lengths that a problem requires.
fn data(problem: &Problem) -> [Vec<f32>; 3] {
    [problem.query_len(), problem.key_len(), problem.value_len()].map(|len| (0..len).map(|at| (at % 7) as f32 - 3.0).collect())
}

#[test]
fn empty_problems_have_empty_answers() {
    let varlen = Problem { varlen: Some(Varlen { tokens_q: 0, tokens_kv: 5 }), ..Problem::new(Dims { seq_len_q: 0, ..SMALL }) };
    for (name, problem) in [
        ("no items", Problem::new(Dims { batch: 0, ..SMALL })),
        ("no query heads", Problem::new(Dims { num_heads: 0, ..SMALL })),
        ("no heads", Problem::new(Dims { num_heads: 0, num_kv_heads: 0, ..SMALL })),
        ("no rows", Problem::new(Dims { seq_len_q: 0, ..SMALL })),
        ("no tokens", varlen),
    ] {
        let problem = Problem { sinks: true, bias: Some(BroadcastShape([1; 4])), ..problem.with_lse().with_stats() };
        let ([query, key, value], sinks) = (data(&problem), vec![0.0; problem.dims.num_heads]);
        let inputs = Inputs { sinks: &sinks, bias: &[0.0], ..Inputs::new(&query, &key, &value) };
        let inputs = if problem.varlen.is_some() { Inputs { cu_seqlens_q: &[0, 0], cu_seqlens_kv: &[0, 5], ..inputs } } else { inputs };
        for engine in engines() {
            let outputs = engine.attention(&problem, &inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(outputs.output.to_f32().is_empty(), "{name}");
            assert_eq!((outputs.lse, outputs.stats), (Some(vec![]), Some(vec![])), "{name}");
            let backward = BackwardInputs::new(&[][..] as &[f32], &[][..] as &[f32]);
            let got = engine.backward(&problem, &inputs, &backward, &WantGradients::all(&problem)).expect("nothing is wrong with it");
            assert_eq!(got.key, Some(HostVec::F32(vec![0.0; key.len()])), "{name}");
            assert_eq!((got.bias, got.sinks), (Some(vec![0.0]), Some(vec![0.0; sinks.len()])), "{name}");
        }
        let planned = Plan::new(&problem, &DeviceCaps::webgpu_defaults(), Algorithm::Auto);
        assert!(!planned.is_ok_and(|plan| plan.summary().is_empty()), "{name}");
    }
}

#[test]
fn impossible_sizes_are_errors() {
    let all = Dims { batch: MAX, num_heads: MAX, num_kv_heads: MAX, seq_len_q: MAX, seq_len_kv: MAX, head_dim: MAX, head_dim_v: MAX };
    for dims in [
        all,
        Dims { batch: MAX, ..SMALL },
        Dims { num_heads: MAX - 1, ..SMALL },
        Dims { num_kv_heads: 0, ..SMALL },
        Dims { seq_len_q: MAX, ..SMALL },
        Dims { seq_len_kv: 1 << 31, ..SMALL },
        Dims { head_dim: MAX, ..SMALL },
        Dims { head_dim: 0, ..SMALL },
        Dims { head_dim_v: MAX, ..SMALL },
    ] {
        let problem = Problem::new(dims);
        assert!(matches!(problem.check(), Err(Error::Invalid { .. })), "{dims:?}");
        let _lens = (problem.query_len(), problem.output_len(), problem.lse_len(), problem.scores_len(), dims.group(), dims.flops());
        let _place = Tables::new(&problem).words(TableVector::Dropout);
    }
    let table =
        Problem { relative_bias_max_distance: Some(u32::MAX), ..Problem::new(Dims { num_heads: 1 << 40, num_kv_heads: 1, ..SMALL }) };
    assert!(table.check().is_err());
    let spec = TensorSpec::default();
    assert_eq!(spec.required_len([MAX; 4]), None);
    assert_eq!(spec.strides([MAX; 4]).head, MAX);
    assert_eq!((BroadcastShape([MAX; 4]).elements(), DType::F32.bytes(MAX)), (None, MAX));
    let _offset = Alignment::BottomRight.offset(MAX, 0);
}

#[test]
fn tables_and_caches_of_absurd_sizes_are_errors() {
    for (width, positions) in [(MAX - 1, 0), (2, MAX), (128, 1 << 40), (1 << 33, 4), (3, 4), (0, 4)] {
        assert!(Rotary::new(Pairing::HalfSplit, 1e4, width, positions).is_err(), "{width} x {positions}");
        assert!(Rotary::scaled(Pairing::Interleaved, 1e4, width, positions, Scaling::Linear { factor: 2.0 }).is_err());
    }
    let rotary = Rotary::new(Pairing::Interleaved, 1e4, 4, 4).expect("small");
    assert!(rotary.apply_tokens(&mut [1.0; 8], MAX, MAX, &[0]).is_err());
    assert!(Rotary::from_tables(Pairing::HalfSplit, MAX, vec![], vec![]).is_ok_and(|table| table.apply(&mut [1.0; 4], 0).is_err()));
    let shape = CacheShape::uniform(2, LayerShape::new(1, 4)).page_size(4).pages(2);
    for shape in [
        shape.clone().pages(MAX),
        shape.clone().pages(1 << 40),
        shape.clone().page_size(MAX),
        CacheShape::uniform(2, LayerShape::new(MAX, 4)).pages(2),
        CacheShape::uniform(2, LayerShape::new(1, MAX)).pages(2),
        CacheShape::uniform(2, LayerShape::new(1, 4).head_dim_v(MAX)).pages(2),
        CacheShape::uniform(MAX, LayerShape::new(1, 4)),
        shape.page_size(1 << 40).pages(1 << 10),
    ] {
        assert!(shape.page_bytes() > 0);
        assert!(KvCache::new(shape.clone()).is_err(), "{shape:?}");
    }
}

/// A slice that is too long is an error in a named layout; with strides or an offset it may be a view.
#[test]
fn named_layouts_have_exactly_their_elements() {
    let problem = Problem::new(SMALL);
    let [query, key, value] = data(&problem);
    let longer = [&query[..], &[0.0; 4]].concat();
    for engine in engines() {
        let long = engine.attention(&problem, &Inputs::new(&longer, &key, &value));
        assert!(matches!(long, Err(Error::Invalid { argument: "query", .. })), "{long:?}");
        let mut view = problem.clone();
        view.query.layout = Layout::Strided(Strides { batch: 24, head: 12, seq: 4, dim: 1 });
        assert!(engine.attention(&view, &Inputs::new(&longer, &key, &value)).is_ok());
        let mut later = problem.clone();
        later.query.offset = 2;
        assert!(engine.attention(&later, &Inputs::new(&longer, &key, &value)).is_ok());
    }
}

/// The memory of gradients that a problem does not have cannot be asked for.
#[test]
fn memory_is_told_for_what_can_be_computed() {
    let problem = Problem::new(SMALL);
    let want = WantGradients { bias: true, ..WantGradients::default() };
    for engine in Engine::every(Default::default()).0 {
        assert!(engine.device_bytes(&problem, Some(&WantGradients::default())).is_ok());
        let refused = engine.device_bytes(&problem, Some(&want));
        assert!(matches!(refused, Err(Error::Invalid { argument: "bias", .. })), "{}: {refused:?}", engine.chosen());
    }
}

/// Distances are integers that are rounded once, so the CPU path and the oracle agree however far rows are from keys.
#[test]
fn alibi_of_distant_rows_is_equal_on_cpu_and_oracle() {
    for offset in [1 << 24, 1 << 29, -(1 << 29), i32::MAX, i32::MIN] {
        for alibi in [Alibi::Signed, Alibi::Symmetric] {
            let mut problem = Problem { alibi: Some(alibi), ..Problem::new(Dims { seq_len_kv: 70, ..SMALL }).with_lse() };
            problem.visibility.alignment = Some(Alignment::Offset(offset));
            let [query, key, value] = data(&problem);
            let inputs = Inputs { alibi_slopes: &[0.5, 1.0], ..Inputs::new(&query, &key, &value) };
            let [cpu, oracle] = engines().map(|engine| engine.attention(&problem, &inputs).expect("valid"));
            let worst = cpu.output.to_f32().iter().zip(oracle.output.to_f32()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{alibi:?} from {offset}: off by {worst}");
        }
    }
}
