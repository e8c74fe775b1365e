//! Choice and shapes of the fused kernel on cooperative matrices.

use super::suited::{ANY, Suited};
use super::{DeviceCaps, DeviceClass};
use crate::numbers::DType;
use crate::problem::{Operand, Problem};
use crate::wgsl::{Kernel, KernelKey, MatrixShape};

/// Shapes.
///
/// In the lab (benches/record/lab-*.md) none of them spills on AMD or NVIDIA. With two matrices along the keys, a head
/// of 256 would take more workgroup memory than NVIDIA has.
const SHAPES: &[Suited<Matrices>] = &[
    Suited { min_rows: 33, max_rows: ANY, max_dim: 128, shape: Matrices { tiles: 4, key_tiles: 2 } },
    Suited { min_rows: 33, max_rows: ANY, max_dim: 256, shape: Matrices { tiles: 4, key_tiles: 1 } },
    Suited { min_rows: 17, max_rows: ANY, max_dim: 128, shape: Matrices { tiles: 2, key_tiles: 2 } },
    Suited { min_rows: 17, max_rows: ANY, max_dim: 256, shape: Matrices { tiles: 2, key_tiles: 1 } },
];

/// Matrices of a workgroup.
#[derive(Clone, Copy, Debug)]
struct Matrices {
    /// Subgroups, each with one matrix of rows.
    tiles: u32,
    /// Matrices along a tile of keys.
    key_tiles: u32,
}

/// Returns the matrix kernels that compute `problem`, of `rows` rows, on the device, best first. None without
/// cooperative matrices or for operands other than f16 in whole vec4s. None on software adapters: Mesa 26.2 lavapipe
/// took 1341 ms for 1,8,1024,1024,64 by matrices, 126 by the prefill kernel of software adapters (busy machine, interleaved), and over 2 s to compile.
pub(super) fn kernels(problem: &Problem, caps: &DeviceCaps, rows: usize) -> impl Iterator<Item = Kernel> {
    let (size, lanes) = (caps.matrix_size, caps.subgroup_max);
    let widest = problem.dims.head_dim.max(problem.dims.head_dim_v);
    let is_f16 = [Operand::Query, Operand::Key, Operand::Value].map(|operand| problem.spec(operand).dtype == DType::F16) == [true; 3];
    // A query that is rotated is no longer f16.
    let works = size > 0 && lanes >= size && is_f16 && !problem.key_hadamard && caps.class != DeviceClass::Software;
    let fitting = SHAPES.iter().filter(move |suited| works && suited.suits(rows, widest));
    let kernels = fitting.map(move |suited| {
        let Matrices { tiles, key_tiles } = suited.shape;
        let keys = (key_tiles * size).max(4 * lanes / size); // each thread has at least four
        Kernel::Matrix(MatrixShape { size, tiles, lanes, keys })
    });
    kernels.filter(|&kernel| {
        let key = KernelKey::new(kernel, problem);
        key.query.vectors && key.key.vectors && key.value.vectors
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, candidates};
    use crate::problem::{Algorithm, Dims, Layout};

    fn caps(lanes: [u32; 2]) -> DeviceCaps {
        let [subgroup_size, subgroup_max] = lanes;
        let class = DeviceClass::Discrete;
        DeviceCaps {
            class,
            subgroup_size,
            subgroup_max,
            matrix_size: 16,
            prefer_matrices: true,
            workgroup_bytes: 49152,
            ..DeviceCaps::webgpu_defaults()
        }
    }

    fn kernel(problem: &Problem, caps: &DeviceCaps) -> Kernel {
        Plan::new(problem, caps, Algorithm::Fused).expect("it fits").steps[0].key.kernel
    }

    fn f16(rows: usize, head_dim: usize) -> Problem {
        Problem::new(Dims { seq_len_q: rows, ..Dims::self_attention(1, 8, 1024, head_dim) }).stored(DType::F16, Layout::Bhsd)
    }

    #[test]
    fn rotated_queries_are_no_factors_of_f16() {
        let count = |problem: &Problem| kernels(problem, &caps([32, 32]), 128).count();
        let [plain, keys, values] = [(false, false), (true, false), (false, true)].map(|(key, value)| f16(128, 64).hadamard(key, value));
        assert!(count(&plain) > 0 && count(&values) > 0 && count(&keys) == 0);
    }

    #[test]
    fn chosen_where_matrices_are_of_use() {
        let nvidia = caps([32, 32]);
        let amd = caps([32, 64]);
        for (problem, device, shape) in [
            (f16(1024, 64), &nvidia, MatrixShape { size: 16, tiles: 4, lanes: 32, keys: 32 }),
            (f16(1024, 128), &amd, MatrixShape { size: 16, tiles: 4, lanes: 64, keys: 32 }),
            (f16(20, 128), &amd, MatrixShape { size: 16, tiles: 2, lanes: 64, keys: 32 }),
            (f16(1024, 256), &nvidia, MatrixShape { size: 16, tiles: 4, lanes: 32, keys: 16 }),
        ] {
            assert_eq!(kernel(&problem, device), Kernel::Matrix(shape), "{:?}", problem.dims);
            assert!(candidates(&problem, device).contains(&Kernel::Matrix(shape)));
        }
    }

    #[test]
    fn not_chosen_elsewhere() {
        let device = caps([32, 32]);
        let f32_query = Problem { query: Problem::new(f16(64, 64).dims).query, ..f16(64, 64) };
        let odd_width = f16(64, 66);
        for problem in [Problem::new(f16(64, 64).dims), f32_query, odd_width, f16(16, 64), f16(64, 260)] {
            assert!(!matches!(kernel(&problem, &device), Kernel::Matrix(_)), "{problem:?}");
        }
        for device in [
            DeviceCaps { matrix_size: 0, ..device.clone() },
            DeviceCaps { prefer_matrices: false, ..device.clone() },
            DeviceCaps { class: DeviceClass::Software, ..device.clone() },
            DeviceCaps { subgroup_size: 0, subgroup_max: 0, ..device.clone() },
            DeviceCaps { subgroup_size: 4, subgroup_max: 8, ..device.clone() },
        ] {
            assert!(!matches!(kernel(&f16(1024, 64), &device), Kernel::Matrix(_)), "{device:?}");
        }
    }
}
