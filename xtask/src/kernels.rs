//! Kernels that the planner can choose on a device, each with the first problem that it is chosen for.

use std::collections::HashSet;

use wgpu_attention::plan::{DeviceCaps, DeviceClass, Plan, Shader, Specialise, cache_shaders, linear_shaders};
use wgpu_attention::{
    Algorithm, Alibi, Alignment, BroadcastShape, DType, Dims, Layout, Paged, Problem, Returns, ScoreOrder, ScoreStage, Strides, SummedRows,
    TensorSpec, Term, WantGradients,
};

use crate::targets::TARGETS;

/// Kernel and the problem that it is for.
pub(crate) struct Kernel {
    /// Problem in words, and the kernel of its plan; stable from one record to the next.
    pub(crate) case: String,
    /// Name of the kernel, with its shape.
    pub(crate) name: String,
    /// WGSL text.
    pub(crate) text: String,
    /// Bytes of workgroup memory.
    pub(crate) workgroup_bytes: u32,
}

/// Returns every kernel once, named after the first case that has it.
pub(crate) fn all(caps: &DeviceCaps) -> Result<Vec<Kernel>, String> {
    let kernel = |case, name: &str, shader: &Shader| Kernel {
        case,
        name: name.into(),
        text: shader.text().into(),
        workgroup_bytes: shader.workgroup_bytes,
    };
    let mut kernels: Vec<_> = shaders(caps, cases(&LONG))?.into_iter().map(|(case, shader)| kernel(case, &shader.name, &shader)).collect();
    // Kernels of caches are the same on every device.
    let caches = cache_shaders();
    kernels.extend(caches.iter().map(|shader| kernel(format!("cache: {}", shader.name), first_word(&shader.name), shader)));
    Ok(kernels)
}

/// Returns every kernel on any kind of device once, those of odd cases too.
pub(crate) fn everywhere() -> Result<Vec<(String, Shader)>, String> {
    let mut all = Vec::new();
    for (device, caps) in devices() {
        let found = shaders(&caps, cases(&LONG).into_iter().chain(odd_cases()).collect())?;
        all.extend(found.into_iter().map(|(case, shader)| (format!("{device}: {case}"), shader)));
    }
    all.extend(cache_shaders().into_iter().map(|shader| (format!("cache: {}", shader.name), shader)));
    all.extend(linear_shaders().into_iter().map(|shader| (format!("layer: {}", shader.name), shader)));
    let mut seen = HashSet::new();
    all.retain(|(_, shader)| seen.insert(shader.text().to_string()));
    Ok(all)
}

/// Returns the texts of the generic kernels of a device without subgroups once, and those of caches and projections.
pub(crate) fn generic() -> Result<Vec<(String, String)>, String> {
    let cases = cases(&LONG).into_iter().filter(|(.., specialise)| *specialise == Specialise::Never);
    let mut all = shaders(&DeviceCaps::webgpu_defaults(), cases.collect())?;
    all.extend(cache_shaders().into_iter().map(|shader| (format!("cache: {}", shader.name), shader)));
    all.extend(linear_shaders().into_iter().map(|shader| (format!("layer: {}", shader.name), shader)));
    Ok(all.into_iter().map(|(case, shader)| (case, shader.text().to_string())).collect())
}

/// Returns devices whose plans differ: the default limits of WebGPU, the lab's targets, and software adapters without
/// subgroups and with some of each size.
fn devices() -> Vec<(String, DeviceCaps)> {
    let defaults = DeviceCaps::webgpu_defaults();
    let software = |size| DeviceCaps {
        class: DeviceClass::Software,
        subgroup_size: size,
        subgroup_max: size,
        workgroup_bytes: 32768,
        workgroup_threads: 1024,
        ..DeviceCaps::webgpu_defaults()
    };
    let mut devices = vec![("WebGPU defaults".into(), defaults)];
    devices.extend(TARGETS.iter().map(|target| (target.name.to_string(), target.caps())));
    devices.extend([0, 4, 8, 16].map(|size| (format!("software, subgroups of {size}"), software(size))));
    devices.push(("software, slow barriers".into(), DeviceCaps { slow_barriers: true, ..software(0) }));
    devices
}

/// Returns the kernels of the cases' plans, each with the first case that has it.
fn shaders(caps: &DeviceCaps, cases: Vec<Case>) -> Result<Vec<(String, Shader)>, String> {
    let mut shaders = Vec::new();
    let mut seen = HashSet::new();
    // With cooperative matrices, plan with and without preferring them. Gradients have no such choice.
    let preferences = if caps.matrix_size > 0 { &[false, true][..] } else { &[false] };
    for (case, problem, algorithm, specialise) in cases {
        let caps = |prefer_matrices| DeviceCaps { specialise, prefer_matrices, ..caps.clone() };
        let plans = match algorithm {
            Some(algorithm) => preferences.iter().map(|&prefer| Plan::new(&problem, &caps(prefer), algorithm)).collect(),
            None => Plan::backward(&problem, &WantGradients::all(&problem), &caps(false)).map(|plan| vec![plan]),
        };
        let plans: Vec<Plan> = plans.map_err(|error| format!("{case}: {error}"))?;
        for shader in plans.iter().flat_map(Plan::shaders) {
            if seen.insert(shader.text().to_string()) {
                shaders.push((format!("{case}: {}", first_word(&shader.name)), shader));
            }
        }
    }
    Ok(shaders)
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// Returns the kernels of [`all`] with `text` in their case.
pub(crate) fn some(caps: &DeviceCaps, text: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels = all(caps)?;
    kernels.retain(|kernel| kernel.case.contains(text));
    Ok(kernels)
}

/// Problem in words, the problem, its algorithm (`None`: its gradients), and the choice of specialised kernels.
pub(crate) type Case = (String, Problem, Option<Algorithm>, Specialise);

/// Returns problems that together need every kernel.
pub(crate) fn cases(sizes: &Sizes) -> Vec<Case> {
    const DIMS: [usize; 4] = [64, 80, 128, 256];
    let mut cases = Vec::new();
    for dtype in DType::FLOATS {
        for dim in DIMS {
            let stored = |lengths| problem(lengths, dim).stored(dtype, Layout::Bhsd);
            let everything = |problem| everything(problem, sizes);
            let (prefill, decode) = (stored(sizes.prefill), stored(sizes.decode));
            let mut add = |what: &str, problem, algorithm, specialise| {
                cases.push((format!("{dtype} D={dim} {what}"), problem, Some(algorithm), specialise));
            };
            add("prefill", prefill.clone(), Algorithm::Fused, Specialise::Always);
            add("prefill, everything", everything(prefill.clone()), Algorithm::Fused, Specialise::Always);
            add("decode", decode.clone(), Algorithm::Fused, Specialise::Always);
            add("decode, everything", everything(decode.clone()), Algorithm::Fused, Specialise::Always);
            if dtype == DType::F32 {
                add("8 rows", stored(sizes.eight_rows), Algorithm::Fused, Specialise::Always);
                add("16 rows", stored(sizes.sixteen_rows), Algorithm::Fused, Specialise::Always);
                add("staged, everything", everything(prefill.clone()), Algorithm::Staged, Specialise::Always);
            }
            add("staged", prefill.clone(), Algorithm::Staged, Specialise::Always);
            if [64, 128].contains(&dim) && dtype != DType::BF16 {
                for (what, text) in USER_TERMS {
                    add(&format!("prefill, user's {what}"), user_term(prefill.clone(), text), Algorithm::Fused, Specialise::Always);
                    add(&format!("decode, user's {what}"), user_term(decode.clone(), text), Algorithm::Fused, Specialise::Always);
                }
            }
            if [64, 128].contains(&dim) && dtype != DType::BF16 {
                let sums = |problem: Problem| problem.with_key_sums(SummedRows::All);
                add("prefill, key sums", sums(prefill.clone()), Algorithm::Fused, Specialise::Always);
                add("prefill, everything and key sums", sums(everything(prefill.clone())), Algorithm::Fused, Specialise::Always);
                add("decode, key sums", sums(decode.clone()), Algorithm::Fused, Specialise::Always);
                add("general, key sums", sums(everything(prefill.clone())), Algorithm::Fused, Specialise::Never);
            }
            add("general", prefill.clone(), Algorithm::Fused, Specialise::Never);
            add("general decode", decode, Algorithm::Fused, Specialise::Never);
            add("general staged", prefill.clone(), Algorithm::Staged, Specialise::Never);
            let mut backward = |what: &str, problem, specialise| {
                cases.push((format!("{dtype} D={dim} {what}"), problem, None, specialise));
            };
            if [64, 128].contains(&dim) && dtype != DType::BF16 {
                for (what, text) in USER_TERMS {
                    backward(&format!("backward, user's {what}"), user_term(prefill.clone(), text), Specialise::Always);
                }
            }
            backward("backward", prefill.clone(), Specialise::Always);
            backward("backward, everything", everything(prefill.clone()), Specialise::Always);
            if dtype == DType::F32 {
                backward("backward of 16 rows", stored(sizes.sixteen_rows), Specialise::Always);
            }
            backward("general backward", everything(prefill), Specialise::Never);
        }
    }
    // Caches: pages, lengths in tables, and storage types.
    for dim in [64, 128] {
        for (cache, query) in [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::Q8, DType::F32), (DType::Q4, DType::F32)] {
            let cached = |problem, query, cache| cached(problem, query, [cache, cache]);
            let mut add = |what: &str, problem: Problem, specialise| {
                cases.push((format!("{cache} cache D={dim} {what}"), problem, Some(Algorithm::Fused), specialise));
            };
            let decode = cached(problem(sizes.decode, dim), query, cache);
            add("paged decode", paged(decode.clone()), Specialise::Always);
            if cache.is_quantised() {
                let prefill = cached(problem(sizes.prefill, dim), query, cache);
                add("decode", decode.clone(), Specialise::Always);
                add("prefill", prefill.aligned(Alignment::BottomRight).causal(), Specialise::Always);
                add("general decode", decode, Specialise::Never);
            } else {
                let mut lengths = decode.clone();
                lengths.visibility.kv_lengths = true;
                add("decode with lengths", lengths, Specialise::Always);
                add("paged decode, sinks", Problem { sinks: true, ..paged(decode) }, Specialise::Always);
            }
            let speculative = problem(Lengths { rows: 8, ..sizes.decode }, dim);
            add("paged, 8 tokens", paged(cached(speculative, query, cache)).aligned(Alignment::BottomRight).causal(), Specialise::Always);
        }
    }
    // Rows that are stored rotated.
    for (dim, specialise) in [(64, Specialise::Always), (128, Specialise::Always), (128, Specialise::Never)] {
        let mut add = |what: &str, problem: Problem, algorithm| {
            let general = if specialise == Specialise::Never { "general " } else { "" };
            cases.push((format!("rotated D={dim} {general}{what}"), problem.hadamard(true, true), Some(algorithm), specialise));
        };
        let decode = cached(problem(sizes.decode, dim), DType::F32, [DType::Q8, DType::Q4]);
        add("paged decode", paged(decode), Algorithm::Fused);
        add("prefill", problem(sizes.prefill, dim).stored(DType::F16, Layout::Bshd), Algorithm::Fused);
        add("staged", problem(sizes.prefill, dim), Algorithm::Staged);
    }
    let odd = problem(sizes.prefill, 67);
    cases.push(("f32 D=67 prefill".into(), odd.clone(), Some(Algorithm::Fused), Specialise::Always));
    cases.push(("f32 D=67 staged".into(), odd, Some(Algorithm::Staged), Specialise::Always));
    cases
}

/// Returns cases that no record has: widths, layouts and options that [`cases`] leaves out.
fn odd_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |what: &str, problem: Problem| {
        let ways = [("", Some(Algorithm::Fused)), (", staged", Some(Algorithm::Staged)), (", backward", None)];
        for (general, specialise) in [("", Specialise::Always), (", general", Specialise::Never)] {
            for (way, algorithm) in ways {
                // Quantised keys and values have no gradients, and those in pages neither.
                let has_gradients = problem.paged.is_none() && [problem.key, problem.value].iter().all(|spec| !spec.dtype.is_quantised());
                if algorithm.is_some() || has_gradients {
                    cases.push((format!("{what}{general}{way}"), problem.clone(), algorithm, specialise));
                }
            }
        }
    };
    for dim in [1, 3, 8, 30, 64, 80, 256, 576] {
        for rows in [1, 7, 12, 300] {
            add(&format!("D={dim}, {rows} rows"), problem(lengths(2, 2, rows, 300), dim));
        }
    }
    let plain = problem(lengths(4, 2, 40, 2000), 32);
    for dtype in DType::FLOATS {
        add(&format!("{dtype} D=32"), plain.clone().stored(dtype, Layout::Bshd));
        let strided =
            |dim| TensorSpec { dtype, layout: Layout::Strided(Strides { batch: 900_000, head: 200_000, seq: 77, dim }), offset: 1 };
        add(
            &format!("{dtype} strided"),
            Problem { query: strided(2), key: strided(1), value: strided(2), output: strided(1), ..plain.clone() },
        );
    }
    for dtype in DType::QUANTISED {
        add(&format!("{dtype} keys"), cached(plain.clone(), DType::F32, [dtype, dtype]));
        let decode = problem(lengths(4, 2, 1, 2000), 64);
        for [key, value] in [[DType::F16, dtype], [dtype, DType::F32]] {
            add(&format!("{key} keys, {value} values"), cached(plain.clone(), DType::F32, [key, value]));
            add(&format!("{key} keys, {value} values, paged decode"), paged(cached(decode.clone(), DType::F32, [key, value])));
        }
    }
    add("user terms", crate::simulate::with_user_terms(plain.clone()));
    add("dropout", Problem { dropout: Some(0.5), ..plain.clone() });
    add("dropout, everything", Problem { dropout: Some(0.5), ..everything(plain.clone(), &LONG) });
    let everything = everything(plain.clone(), &LONG);
    add(
        "softcap last, symmetric slopes",
        Problem { score_order: ScoreOrder::BiasThenSoftcap, alibi: Some(Alibi::Symmetric), ..everything.clone() },
    );
    let mut masked = plain.clone();
    masked.visibility.mask = everything.visibility.mask;
    add("mask", masked);
    add("bias", Problem { bias: everything.bias, ..plain.clone() });
    let matrix = Problem { want: Returns { lse: true, scores: Some(ScoreStage::Masked), ..Returns::default() }, ..plain.clone() };
    cases.push(("scores and weights".into(), matrix, Some(Algorithm::Staged), Specialise::Always));
    cases
}

/// Sizes of the problems: one for each row of the planner's table, and one that splits the keys.
pub(crate) struct Sizes {
    prefill: Lengths,
    decode: Lengths,
    eight_rows: Lengths,
    sixteen_rows: Lengths,
    /// Window of [`everything`]; `max_distance` is that of its relative bias.
    window: u32,
    max_distance: u32,
}

#[derive(Clone, Copy)]
struct Lengths {
    num_heads: usize,
    num_kv_heads: usize,
    rows: usize,
    keys: usize,
}

const fn lengths(num_heads: usize, num_kv_heads: usize, rows: usize, keys: usize) -> Lengths {
    Lengths { num_heads, num_kv_heads, rows, keys }
}

/// Realistic sizes.
pub(crate) const LONG: Sizes = Sizes {
    prefill: lengths(8, 8, 1024, 1024),
    decode: lengths(32, 8, 1, 4096),
    eight_rows: lengths(8, 8, 8, 1024),
    sixteen_rows: lengths(8, 8, 16, 1024),
    window: 512,
    max_distance: 128,
};

/// Smallest sizes that get the same kernels; odd, so that every tile has a tail.
pub(crate) const SHORT: Sizes = Sizes {
    prefill: lengths(2, 2, 37, 41),
    decode: lengths(4, 1, 1, 527),
    eight_rows: lengths(2, 2, 8, 41),
    sixteen_rows: lengths(2, 2, 16, 41),
    window: 20,
    max_distance: 16,
};

fn problem(lengths: Lengths, head_dim: usize) -> Problem {
    let Lengths { num_heads, num_kv_heads, rows: seq_len_q, keys: seq_len_kv } = lengths;
    Problem::new(Dims { batch: 1, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v: head_dim })
}

fn cached(problem: Problem, query: DType, [key, value]: [DType; 2]) -> Problem {
    let mut problem = problem.stored(query, Layout::Bshd);
    (problem.key.dtype, problem.value.dtype) = (key, value);
    problem
}

fn paged(mut problem: Problem) -> Problem {
    let pages = problem.dims.seq_len_kv.div_ceil(16);
    problem.paged = Some(Paged { page_size: 16, pages, pages_per_item: pages });
    problem.visibility.kv_lengths = true;
    problem
}

/// Users' terms that must cost no more spills than none.
const USER_TERMS: [(&str, &str); 2] = [
    ("causal", "fn visible(at: Pair) -> bool { return at.key <= at.position; }"),
    ("decay", "fn score(x: f32, at: Pair) -> f32 { return x - 0.05 * abs(f32(at.position - at.key)); }"),
];

fn user_term(problem: Problem, text: &str) -> Problem {
    problem.aligned(Alignment::BottomRight).with_term(Term::wgsl(text).expect("a valid text"))
}

/// Adds every option that can be combined.
fn everything(problem: Problem, sizes: &Sizes) -> Problem {
    let full = BroadcastShape(problem.dims.scores_shape());
    let mut problem = problem.aligned(Alignment::BottomRight).causal().window(Some(sizes.window), None).with_lse();
    problem.softcap = Some(30.0);
    problem.bias = Some(full);
    problem.alibi = Some(Alibi::Signed);
    problem.relative_bias_max_distance = Some(sizes.max_distance);
    problem.sinks = true;
    problem.visibility.mask = Some(full);
    problem.visibility.kv_lengths = true;
    problem.visibility.prefix_lengths = true;
    problem.visibility.segments = true;
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_kernels_under_names_of_their_own() {
        for target in TARGETS {
            let kernels = all(&target.caps()).expect("all plans can be made");
            let cases: HashSet<_> = kernels.iter().map(|kernel| &kernel.case).collect();
            assert_eq!(cases.len(), kernels.len(), "{}", target.name);
            assert!(kernels.len() > 60, "{}: {}", target.name, kernels.len());
        }
    }
}
