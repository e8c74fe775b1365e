//! Tests that compose, parse and validate every variant that the planner can ask for, and compare it with its key.

use std::collections::HashSet;

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess};

use super::{Access, KernelKey, Params, compose};
use crate::custom::{Table, Term};
use crate::numbers::DType;
use crate::plan::{DeviceCaps, DeviceClass, Plan, Specialise};
use crate::problem::{
    Algorithm, Alibi, Alignment, BroadcastShape, Dims, Layout, Problem, Returns, ScoreOrder, Strides, SummedRows, TensorSpec, WantGradients,
};

/// Problems that together set every switch of the key.
fn problems() -> Vec<Problem> {
    let mut problems = Vec::new();
    for head_dim in [1, 3, 8, 30, 64, 80, 128, 256, 576] {
        for seq_len_q in [1, 7, 12, 300] {
            problems.push(Problem::new(Dims { seq_len_q, ..Dims::self_attention(1, 2, 300, head_dim) }));
        }
    }
    let dims = Dims { num_heads: 4, num_kv_heads: 2, seq_len_q: 40, head_dim_v: 24, ..Dims::self_attention(2, 4, 2000, 32) };
    let plain = Problem::new(dims);
    for dtype in DType::FLOATS {
        problems.push(plain.clone().stored(dtype, Layout::Bshd));
        let strided = |dim| TensorSpec { dtype, layout: Layout::Strided(Strides { batch: 90000, head: 20000, seq: 77, dim }), offset: 1 };
        problems.push(Problem { query: strided(2), key: strided(1), value: strided(2), output: strided(1), ..plain.clone() });
    }
    let [q8, q4] = DType::QUANTISED;
    for (key, value) in [(q8, q8), (q4, q4), (q8, q4), (DType::F16, q4), (q4, DType::F32)] {
        let [key, value] = [key, value].map(|dtype| TensorSpec::new(dtype, Layout::Bshd));
        let few = Problem { dims: Dims { head_dim_v: 32, ..dims }, key, value, ..plain.clone() };
        problems.push(few.clone());
        problems.push(Problem { dims: Dims { seq_len_q: 1, ..few.dims }, ..few });
    }
    for (head_dim, head_dim_v) in [(32, 128), (192, 64), (256, 32)] {
        for seq_len_q in [1, 7, 40] {
            let rotated = Problem::new(Dims { seq_len_q, head_dim, head_dim_v, ..dims }).hadamard(true, true);
            problems.extend([rotated.clone(), rotated.stored(DType::F16, Layout::Bshd)]);
        }
    }
    let full = BroadcastShape(dims.scores_shape());
    let mut visibility = plain.clone().aligned(Alignment::BottomRight).causal().visibility;
    visibility.mask = Some(full);
    visibility.segments = true;
    problems.push(Problem { visibility, ..plain.clone() });
    for score_order in [ScoreOrder::SoftcapThenBias, ScoreOrder::BiasThenSoftcap] {
        for alibi in [Alibi::Signed, Alibi::Symmetric] {
            let all = Problem { score_order, alibi: Some(alibi), softcap: Some(5.0), bias: Some(full), visibility, ..plain.clone() };
            problems.push(Problem { relative_bias_max_distance: Some(4), sinks: true, ..all });
        }
    }
    let functions = "fn visible(at: Pair) -> bool { return at.key / 3 <= at.position % 100 && bits[at.row] != u32(at.head); }
        fn score(x: f32, at: Pair) -> f32 { return 2.0 * tanh(x) + rates[at.kv_head] * f32(offsets[at.key - 5]); }";
    let tables = [Table::u32("bits", 40), Table::f32("rates", 2), Table::i32("offsets", 9)];
    let users = Term::with_tables(functions, &tables).expect("valid");
    problems.push(plain.clone().aligned(Alignment::TopLeft).with_term(users));
    problems.push(Problem { dropout: Some(0.5), ..plain.clone() });
    problems.push(Problem::new(Dims { seq_len_q: 6000, ..Dims::self_attention(1, 1, 6000, 30) }).stored(DType::F16, Layout::Bhsd));
    problems.push(Problem {
        want: Returns { lse: true, stats: true, scores: Some(crate::problem::ScoreStage::Masked), weights: true, key_sums: None },
        ..plain.clone()
    });
    problems
}

fn devices() -> [DeviceCaps; 8] {
    let defaults = DeviceCaps::webgpu_defaults();
    let software =
        DeviceCaps { class: DeviceClass::Software, subgroup_size: 8, subgroup_max: 8, workgroup_bytes: 32768, ..defaults.clone() };
    let discrete =
        DeviceCaps { class: DeviceClass::Discrete, subgroup_size: 32, subgroup_max: 32, workgroup_bytes: 49152, ..defaults.clone() };
    let matrices = DeviceCaps { matrix_size: 16, prefer_matrices: true, ..discrete.clone() };
    [
        defaults.clone(),
        DeviceCaps { specialise: Specialise::Never, ..software.clone() },
        DeviceCaps { specialise: Specialise::Always, ..software.clone() },
        DeviceCaps { specialise: Specialise::Always, subgroup_size: 16, subgroup_max: 16, ..software },
        DeviceCaps { subgroup_max: 64, ..matrices.clone() },
        DeviceCaps { class: DeviceClass::Integrated, matrix_size: 8, workgroup_bytes: 32768, ..matrices.clone() },
        matrices,
        discrete,
    ]
}

/// Keys of all kernels that [`problems`] need on [`devices`].
fn keys() -> HashSet<KernelKey> {
    let mut keys = HashSet::new();
    let sums = |(at, problem): (usize, &Problem)| problem.clone().with_key_sums([SummedRows::All, SummedRows::Last(2)][at % 2]);
    let all = problems();
    for problem in all.iter().chain(&all.iter().enumerate().map(sums).collect::<Vec<_>>()) {
        for caps in devices() {
            if let Ok(plan) = Plan::backward(problem, &WantGradients::all(problem), &caps) {
                keys.extend(plan.steps.into_iter().map(|step| step.key));
            }
            for algorithm in [Algorithm::Auto, Algorithm::Fused, Algorithm::Staged] {
                if let Ok(plan) = Plan::new(problem, &caps, algorithm) {
                    keys.extend(plan.steps.into_iter().map(|step| step.key));
                }
            }
        }
    }
    keys
}

fn parse(key: &KernelKey) -> (naga::Module, naga::valid::ModuleInfo) {
    let source = compose(key);
    let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities: Capabilities::all() };
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source.text)
        .unwrap_or_else(|error| panic!("{key:?}: {}", error.emit_to_string(&source.text)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{key:?}: {}", error.emit_to_string(&source.text)));
    (module, info)
}

#[test]
fn every_variant_is_valid_and_as_the_planner_believes() {
    let keys = keys();
    assert!(keys.len() > 100, "only {} variants", keys.len());
    for key in &keys {
        let (module, info) = parse(key);
        let layouter = {
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).expect("layout");
            layouter
        };
        let entry = info.get_entry_point(0);
        let mut bindings = Vec::new();
        let mut workgroup_bytes = 0;
        for (handle, variable) in module.global_variables.iter() {
            if entry[handle].is_empty() {
                continue; // declared, not used
            }
            let size = layouter[variable.ty].size;
            match variable.space {
                AddressSpace::WorkGroup => workgroup_bytes += size,
                AddressSpace::Uniform => {
                    assert_eq!(size as usize, size_of::<Params>(), "params");
                    bindings.push((variable.binding.expect("bound").binding, Access::Uniform));
                }
                AddressSpace::Storage { access } => {
                    let access = if access.contains(StorageAccess::STORE) { Access::ReadWrite } else { Access::Read };
                    bindings.push((variable.binding.expect("bound").binding, access));
                }
                _ => {}
            }
        }
        let believed: Vec<_> = key.bindings().into_iter().map(|(slot, access)| (slot as u32, access)).collect();
        for (number, access) in &bindings {
            assert!(believed.contains(&(*number, *access)), "{key:?}: binding {number} {access:?} not in {believed:?}");
        }
        assert_eq!(workgroup_bytes, key.workgroup_bytes(), "workgroup bytes of {key:?}");
        assert_eq!(module.entry_points[0].workgroup_size, [key.threads(), 1, 1]);
    }
}

#[test]
fn every_variant_translates_to_msl_hlsl_and_spirv() {
    use naga::back::{hlsl, msl, spv};
    let mut matrix_sizes = HashSet::new();
    for key in &keys() {
        let (module, info) = parse(key);
        let entry = Some((naga::ShaderStage::Compute, "main".to_string()));
        // HLSL has no cooperative matrices, MSL none of 16x16.
        let matrix_size = if let super::Kernel::Matrix(shape) = key.kernel { shape.size } else { 0 };
        matrix_sizes.insert(matrix_size);
        let options = msl::Options { lang_version: (3, 0), fake_missing_bindings: true, ..Default::default() };
        let pipeline = msl::PipelineOptions { entry_point: entry, ..Default::default() };
        if matrix_size != 16 {
            let (text, _) = msl::write_string(&module, &info, &options, &pipeline).unwrap_or_else(|error| panic!("{key:?}: msl: {error}"));
            assert_eq!(text.contains("simdgroup_multiply_accumulate"), matrix_size == 8);
        }
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, fake_missing_bindings: true, ..Default::default() };
        let mut text = String::new();
        if matrix_size == 0 {
            hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
                .write(&module, &info, None)
                .unwrap_or_else(|error| panic!("{key:?}: hlsl: {error}"));
        }
        let options = spv::Options { lang_version: (1, 3), capabilities: None, ..Default::default() };
        spv::write_vec(&module, &info, &options, None).unwrap_or_else(|error| panic!("{key:?}: spirv: {error}"));
    }
    assert!(matrix_sizes.is_superset(&[8, 16].into()), "no kernel of cooperative matrices was among them: {matrix_sizes:?}");
}

/// Standard WGSL differs from naga's by directives only: subgroups are enabled where naga finds subgroup operations,
/// and cooperative matrices have no standard form. scripts/tint.sh checks that the text is standard.
#[test]
fn constant_switches_are_written_where_they_are_called() {
    let mut folded = HashSet::new();
    for key in &keys() {
        let (before, source) = (compose(key), compose(key).with_constant_switches());
        assert_eq!(source.text.lines().count(), before.text.lines().count(), "{key:?}");
        let module = naga::front::wgsl::parse_str(&source.text).unwrap_or_else(|error| panic!("{key:?}: {error}"));
        let validated = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module);
        validated.unwrap_or_else(|error| panic!("{key:?}: {error:?}"));
        for (name, rest) in source.text.split("fn ").filter_map(|function| function.split_once("() -> bool { return ")) {
            let calls = source.text.matches(&format!("{name}()")).count() - 1;
            if let Some(value) = ["true;", "false;"].iter().find(|&&value| rest.starts_with(value)) {
                assert_eq!(calls, 0, "{key:?} calls {name}, which is {value}");
                folded.insert((name.to_string(), *value));
            } else {
                assert_eq!(calls, before.text.matches(&format!("{name}()")).count() - 1, "{key:?}: {name} is not constant");
            }
        }
    }
    for switch in ["is_paged", "is_dropping", "has_pair_terms", "has_visible_terms"] {
        assert!(folded.contains(&(switch.to_string(), "false;")), "{switch} is never false");
    }
    assert!(folded.contains(&("has_pair_terms".to_string(), "true;")));
}

#[test]
fn standard_text_enables_what_it_uses() {
    let mut seen = HashSet::new();
    for key in &keys() {
        let (module, _) = parse(key);
        let source = compose(key);
        let Some(standard) = source.standard() else {
            assert!(matches!(key.kernel, super::Kernel::Matrix(_)), "{key:?}");
            continue;
        };
        let without = Validator::new(ValidationFlags::all(), Capabilities::all() - Capabilities::SUBGROUP).validate(&module).is_ok();
        assert_eq!(standard.text.contains("enable subgroups;"), !without, "{key:?}");
        assert!(standard.text.ends_with(&source.text));
        let line = |text: &str| text.lines().position(|line| line.starts_with("fn main(")).expect("an entry point") + 1;
        assert_eq!(standard.locate(line(&standard.text)), source.locate(line(&source.text)));
        seen.insert(without);
    }
    assert_eq!(seen.len(), 2, "kernels with and without subgroups");
}

#[test]
fn lines_are_found_in_their_files() {
    let key = keys().into_iter().find(|key| matches!(key.kernel, super::Kernel::Tiles(_))).expect("a tiles kernel");
    let source = compose(&key);
    let line = source.text.lines().position(|line| line.starts_with("fn main(")).expect("an entry point") + 1;
    assert!(source.locate(line).starts_with("shaders/fused/tiles.wgsl:"), "{}", source.locate(line));
    assert_eq!(source.locate(1), "prelude:1");
}

#[test]
fn parameters_can_lie_in_storage() {
    let keys = keys().into_iter().map(|key| compose(&key));
    let cache_keys = super::every_cache_key().into_iter().map(super::compose_cache);
    for source in keys.chain(cache_keys).chain([super::compose_transpose()]) {
        let lines = source.text.lines().count();
        let text = source.with_params_in_storage().text;
        assert_eq!(text.matches("@group(0) @binding(0) var<storage, read> ").count(), 1, "{text}");
        assert!(!text.contains("<uniform>"), "{text}");
        assert_eq!(text.lines().count(), lines, "errors are located by line");
    }
}
