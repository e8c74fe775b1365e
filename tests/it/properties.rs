//! Random problems with every option, and the fixed table: every engine is compared with the oracle.

use crate::common::{Tested, cpu, gpus, report, variable};
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::plan::{DeviceClass, Plan, Specialise};
use wgpu_attention::verify::{Case, Fill, Row, random, run_case, run_generated, table};
use wgpu_attention::{Algorithm, DType, Layout, Problem, Progress, TensorSpec};

/// Runs the table and `cases` random problems. `ATTENTION_RANDOM_CASES` and `ATTENTION_SEED` override count and seed.
fn table_and_random(backends: &[Tested], cases: u64) {
    let candidates: Vec<_> = backends.iter().map(Tested::candidate).collect();
    let (seed, cases) = (variable("ATTENTION_SEED", 1), variable("ATTENTION_RANDOM_CASES", cases));
    let rows = run_generated(&candidates, seed, cases, "", &mut Progress::default()).expect("every generated problem is valid");
    report(backends, &rows);
}

#[test]
fn cpu_path() {
    table_and_random(&[cpu()], 2000);
}

/// Runs the adapters side by side: the drivers' compilers take most of the time, and run on one thread each.
#[test]
fn every_gpu() {
    let adapters = gpus(ShaderOptions::default()).len() / 2;
    std::thread::scope(|scope| {
        for adapter in 0..adapters {
            scope.spawn(move || {
                let both_algorithms: Vec<_> = gpus(ShaderOptions::default()).into_iter().skip(2 * adapter).take(2).collect();
                table_and_random(&both_algorithms, 10);
            });
        }
    });
}

/// Runs specialised kernels in the shapes of two device classes, on part of the table; each problem compiles its own.
#[test]
fn specialised_variants() {
    for class in [DeviceClass::Software, DeviceClass::Discrete] {
        println!("as on a device of class {class:?}:");
        let gpus = gpus(ShaderOptions { specialise: Specialise::Always, pretend: Some(class), ..Default::default() });
        let candidates: Vec<_> = gpus.iter().map(Tested::candidate).collect();
        let part = variable("ATTENTION_SPECIAL_PART", 48) as usize;
        let cases = table().expect("every case is valid").into_iter().step_by(part.max(1));
        let rows: Vec<Row> = cases.flat_map(|case| run_case("specialised", &case, &candidates).expect("valid")).collect();
        report(&gpus, &rows);
    }
}

/// Fits a problem to the matrix kernel, if possible: queries, keys and values in f16 and in whole vec4s.
fn as_f16(mut problem: Problem) -> Problem {
    let dims = &mut problem.dims;
    (dims.head_dim, dims.head_dim_v) = (dims.head_dim.next_multiple_of(4), dims.head_dim_v.next_multiple_of(4));
    if problem.varlen.is_none() {
        dims.seq_len_q = dims.seq_len_q.max(17);
    }
    for spec in [&mut problem.query, &mut problem.key, &mut problem.value] {
        let layout = if let Layout::Strided(_) = spec.layout { Layout::Bhsd } else { spec.layout };
        *spec = TensorSpec { dtype: DType::F16, layout, offset: spec.offset.next_multiple_of(4) };
    }
    problem
}

/// Runs the matrix kernel on the table and on random problems stored as f16: scores so large that running maxima keep
/// growing, NaN and infinity in masked keys, sometimes a visible NaN.
#[test]
fn cooperative_matrices() {
    let pretend = Some(DeviceClass::Discrete);
    let gpus = gpus(ShaderOptions { specialise: Specialise::Always, pretend, prefer_matrices: true, ..Default::default() });
    let (seed, random_cases) = (variable("ATTENTION_SEED", 1), variable("ATTENTION_MATRIX_CASES", 24));
    let part = variable("ATTENTION_SPECIAL_PART", 48) as usize;
    for gpu in gpus.iter().filter(|gpu| gpu.name.ends_with("fused")) {
        let device = gpu.gpu.as_ref().expect("a GPU");
        if device.caps().matrix_size == 0 {
            println!("\n*** NO COOPERATIVE MATRICES on {}: the matrix kernel is not tested there ***\n", device.name());
            continue;
        }
        let by_matrices =
            |problem: &Problem| Plan::new(problem, device.caps(), Algorithm::Fused).is_ok_and(|plan| plan.summary().contains("matrix"));
        let random = (seed..seed + 20 * random_cases).map(|seed| random(seed).expect("valid"));
        let random = random.filter(|case| by_matrices(&as_f16(case.problem.clone()))).take(random_cases as usize);
        let cases = table().expect("valid").into_iter().step_by(part.max(1)).chain(random);
        let mut rows = Vec::new();
        for (number, case) in cases.enumerate() {
            let problem = as_f16(case.problem);
            let amplitude = [1.0, 3.0][number % 2];
            let fill = Fill { seed: number as u64, amplitude, poison: number % 3 > 0, nan: number % 7 == 0, ..Fill::seed(0) };
            if problem.check().is_ok() && by_matrices(&problem) {
                let case = Case::new(case.name, problem, fill).expect("checked");
                rows.extend(run_case("matrices", &case, &[gpu.candidate()]).expect("valid"));
            }
        }
        report(std::slice::from_ref(gpu), &rows);
        assert!(rows.len() > random_cases as usize, "only {} problems went by matrices", rows.len());
    }
}
