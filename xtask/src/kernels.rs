//! The kernels that the planner can choose on a device, each with the first problem that it is chosen for.

use std::collections::HashSet;

use wgpu_attention::plan::{DeviceCaps, Plan, Shader, Specialise, cache_shaders};
use wgpu_attention::{Algorithm, Alibi, Alignment, Broadcast, DType, Dims, Layout, Paged, Problem, WantGradients};

/// A kernel and what it is for.
pub(crate) struct Kernel {
    /// The problem in words, and which of the plan's kernels: the same from one record to the next.
    pub(crate) case: String,
    /// Which kernel, and its shape.
    pub(crate) name: String,
    /// WGSL.
    pub(crate) text: String,
    /// Bytes of workgroup memory.
    pub(crate) workgroup_bytes: u32,
}

/// Every kernel, each once. A kernel is named after the first case that has it.
pub(crate) fn all(caps: &DeviceCaps) -> Result<Vec<Kernel>, String> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut seen = HashSet::new();
    // Where there are cooperative matrices, what is chosen with and without them. Gradients have no such choice.
    let preferences = if caps.matrix_size > 0 { &[false, true][..] } else { &[false] };
    for (case, problem, algorithm, specialise) in cases(&LONG) {
        let caps = |prefer_matrices| DeviceCaps { specialise, prefer_matrices, ..caps.clone() };
        let plans = match algorithm {
            Some(algorithm) => preferences.iter().map(|&prefer| Plan::new(&problem, &caps(prefer), algorithm)).collect(),
            None => Plan::backward(&problem, &WantGradients::all(&problem), &caps(false)).map(|plan| vec![plan]),
        };
        let plans: Vec<Plan> = plans.map_err(|error| format!("{case}: {error}"))?;
        for shader in plans.iter().flat_map(Plan::shaders) {
            if seen.insert(shader.text.clone()) {
                let role = shader.name.split_whitespace().next().unwrap_or_default();
                let (name, text, workgroup_bytes) = (shader.name.clone(), shader.text, shader.workgroup_bytes);
                kernels.push(Kernel { case: format!("{case}: {role}"), name, text, workgroup_bytes });
            }
        }
    }
    // What keeps a cache on a device is the same for every one.
    kernels.extend(cache_shaders().into_iter().map(|Shader { name, text, workgroup_bytes }| {
        let role = name.split_whitespace().next().unwrap_or_default().to_string();
        Kernel { case: format!("cache: {name}"), name: role, text, workgroup_bytes }
    }));
    Ok(kernels)
}

/// Those of [`all`] with `text` in their case.
pub(crate) fn some(caps: &DeviceCaps, text: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels = all(caps)?;
    kernels.retain(|kernel| kernel.case.contains(text));
    Ok(kernels)
}

/// A problem in words, itself, how it is computed (`None`: its gradients), and whether kernels are made for it alone.
pub(crate) type Case = (String, Problem, Option<Algorithm>, Specialise);

/// Problems that between them need every kernel.
pub(crate) fn cases(sizes: &Sizes) -> Vec<Case> {
    const DIMS: [usize; 4] = [64, 80, 128, 256];
    let mut cases = Vec::new();
    for dtype in DType::ALL {
        for dim in DIMS {
            let stored = |lengths| problem(lengths, dim).stored(dtype, Layout::Bhsd);
            let everything = |problem| everything(problem, sizes);
            let (prefill, decode) = (stored(sizes.prefill), stored(sizes.decode));
            let mut add = |what: &str, problem, algorithm, specialise| {
                cases.push((format!("{dtype} D={dim} {what}"), problem, Some(algorithm), specialise));
            };
            add("prefill", prefill, Algorithm::Fused, Specialise::Always);
            add("prefill, everything", everything(prefill), Algorithm::Fused, Specialise::Always);
            add("decode", decode, Algorithm::Fused, Specialise::Always);
            add("decode, everything", everything(decode), Algorithm::Fused, Specialise::Always);
            if dtype == DType::F32 {
                add("8 rows", stored(sizes.eight_rows), Algorithm::Fused, Specialise::Always);
                add("16 rows", stored(sizes.sixteen_rows), Algorithm::Fused, Specialise::Always);
                add("staged, everything", everything(prefill), Algorithm::Staged, Specialise::Always);
            }
            add("staged", prefill, Algorithm::Staged, Specialise::Always);
            add("general", prefill, Algorithm::Fused, Specialise::Never);
            add("general decode", decode, Algorithm::Fused, Specialise::Never);
            add("general staged", prefill, Algorithm::Staged, Specialise::Never);
            let mut backward = |what: &str, problem, specialise| {
                cases.push((format!("{dtype} D={dim} {what}"), problem, None, specialise));
            };
            backward("backward", prefill, Specialise::Always);
            backward("backward, everything", everything(prefill), Specialise::Always);
            if dtype == DType::F32 {
                backward("backward of 16 rows", stored(sizes.sixteen_rows), Specialise::Always);
            }
            backward("general backward", everything(prefill), Specialise::Never);
        }
    }
    // Caches: pages, lengths in tables, and how keys and values are stored.
    for dim in [64, 128] {
        for (cache, query) in [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::Q8, DType::F32), (DType::Q4, DType::F32)] {
            let mut add = |what: &str, problem: Problem, specialise| {
                cases.push((format!("{cache} cache D={dim} {what}"), problem, Some(Algorithm::Fused), specialise));
            };
            let decode = cached(problem(sizes.decode, dim), query, cache);
            add("paged decode", paged(decode), Specialise::Always);
            if cache.is_blocks() {
                let prefill = cached(problem(sizes.prefill, dim), query, cache);
                add("decode", decode, Specialise::Always);
                add("prefill", prefill.causal(Alignment::BottomRight), Specialise::Always);
                add("general decode", decode, Specialise::Never);
            } else {
                let mut lengths = decode;
                lengths.visibility.kv_lengths = true;
                add("decode with lengths", lengths, Specialise::Always);
                add("paged decode, sinks", Problem { sinks: true, ..paged(decode) }, Specialise::Always);
            }
            let speculative = problem(Lengths { rows: 8, ..sizes.decode }, dim);
            add("paged, 8 tokens", paged(cached(speculative, query, cache)).causal(Alignment::BottomRight), Specialise::Always);
        }
    }
    let odd = problem(sizes.prefill, 67);
    cases.push(("f32 D=67 prefill".into(), odd, Some(Algorithm::Fused), Specialise::Always));
    cases.push(("f32 D=67 staged".into(), odd, Some(Algorithm::Staged), Specialise::Always));
    cases
}

/// Sizes of the problems: one of each row of the planner's table, and one that splits the keys.
pub(crate) struct Sizes {
    prefill: Lengths,
    decode: Lengths,
    eight_rows: Lengths,
    sixteen_rows: Lengths,
    /// Of [`everything`].
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

/// As people have them.
pub(crate) const LONG: Sizes = Sizes {
    prefill: lengths(8, 8, 1024, 1024),
    decode: lengths(32, 8, 1, 4096),
    eight_rows: lengths(8, 8, 8, 1024),
    sixteen_rows: lengths(8, 8, 16, 1024),
    window: 512,
    max_distance: 128,
};

/// As small as they can be for the same kernels, and odd, so that every tile has a tail.
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

fn cached(problem: Problem, query: DType, cache: DType) -> Problem {
    let mut problem = problem.stored(query, Layout::Bshd);
    (problem.key.dtype, problem.value.dtype) = (cache, cache);
    problem
}

fn paged(mut problem: Problem) -> Problem {
    let pages = problem.dims.seq_len_kv.div_ceil(16);
    problem.paged = Some(Paged { page_size: 16, pages, pages_per_item: pages });
    problem.visibility.kv_lengths = true;
    problem
}

/// With every option that can be had together.
fn everything(problem: Problem, sizes: &Sizes) -> Problem {
    let full = Broadcast(problem.dims.scores_shape());
    let mut problem = problem.causal(Alignment::BottomRight).window(Alignment::BottomRight, Some(sizes.window), None).with_lse();
    problem.softcap = Some(30.0);
    problem.bias = Some(full);
    problem.alibi = Some(Alibi::Signed);
    problem.relative_bias = Some(sizes.max_distance);
    problem.sinks = true;
    problem.visibility.mask = Some(full);
    problem.visibility.kv_lengths = true;
    problem.visibility.prefix_lengths = true;
    problem.visibility.documents = true;
    problem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::TARGETS;

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
