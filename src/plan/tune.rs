//! Text form of what autotuning remembers: classes of problems, and kernels.

use super::fused::heads_packed;
use crate::problem::{Operand, Problem};
use crate::wgsl::{DecodeShape, Kernel, LaneShape, MatrixShape, RowShape, TileShape};

/// Class of `problem`, whose members share a kernel: sizes rounded up to powers of two, widths, types, score options.
pub(crate) fn class_of(problem: &Problem) -> String {
    let d = &problem.dims;
    let up = |x: usize| x.max(1).checked_next_power_of_two().unwrap_or(usize::MAX);
    let rows = d.seq_len_q * heads_packed(d);
    let dtype = |operand| problem.spec(operand).dtype;
    let mut class = format!(
        "rows {} keys {} heads {} head_dim {} {} {} {} {}",
        up(rows),
        up(d.seq_len_kv),
        up(d.batch * d.num_heads),
        d.head_dim,
        d.head_dim_v,
        dtype(Operand::Query),
        dtype(Operand::Key),
        dtype(Operand::Value)
    );
    for term in problem.terms() {
        class = class + " " + term.text.word;
    }
    for (is, word) in [(problem.has_tables(), " tables"), (problem.paged.is_some(), " paged")] {
        if is {
            class += word;
        }
    }
    class
}

/// Writes a fused kernel and its shape as text.
pub(crate) fn kernel_text(kernel: Kernel) -> String {
    match kernel {
        Kernel::Tiles(TileShape { threads, rows, cols, keys, subgroups }) => {
            format!("tiles {threads} {rows} {cols} {keys} {}", u32::from(subgroups))
        }
        Kernel::Lanes(LaneShape { lanes, rows, keys, step }) => format!("lanes {lanes} {rows} {keys} {step}"),
        Kernel::Rows(RowShape { threads, keys, step }) => format!("rows {threads} {keys} {step}"),
        Kernel::Decode(DecodeShape { lanes, rows }) => format!("decode {lanes} {rows}"),
        Kernel::Matrix(MatrixShape { size, tiles, lanes, keys }) => format!("matrix {size} {tiles} {lanes} {keys}"),
        other => other.to_string(),
    }
}

/// Reads the output of [`kernel_text`]. The planner checks that the kernel fits the device.
pub(crate) fn read_kernel(text: &str) -> Option<Kernel> {
    let mut words = text.split(' ');
    let name = words.next()?;
    let numbers: Vec<u32> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    match (name, &numbers[..]) {
        ("tiles", &[threads, rows, cols, keys, subgroups]) => {
            Some(Kernel::Tiles(TileShape { threads, rows, cols, keys, subgroups: subgroups == 1 }))
        }
        ("lanes", &[lanes, rows, keys, step]) => Some(Kernel::Lanes(LaneShape { lanes, rows, keys, step })),
        ("rows", &[threads, keys, step]) => Some(Kernel::Rows(RowShape { threads, keys, step })),
        ("matrix", &[size, tiles, lanes, keys]) => Some(Kernel::Matrix(MatrixShape { size, tiles, lanes, keys })),
        ("decode", &[lanes, rows]) => Some(Kernel::Decode(DecodeShape { lanes, rows })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::DType;
    use crate::plan::{DeviceCaps, DeviceClass, candidates};
    use crate::problem::{Algorithm, Alignment, Dims, Layout};

    #[test]
    fn kernels_read_back_and_only_those_that_work_are_taken() {
        let problem = Problem::new(Dims::self_attention(1, 8, 512, 64)).stored(DType::F16, Layout::Bhsd);
        let caps = DeviceCaps {
            class: DeviceClass::Discrete,
            subgroup_size: 32,
            subgroup_max: 32,
            matrix_size: 16,
            ..DeviceCaps::webgpu_defaults()
        };
        let all = candidates(&problem, &caps);
        assert!(all.len() > 8, "{all:?}");
        for &kernel in &all {
            assert_eq!(read_kernel(&kernel_text(kernel)), Some(kernel));
            let plan = super::super::Plan::of(&problem, &caps, Algorithm::Fused, Some(kernel)).expect("it fits");
            assert_eq!(plan.steps[0].key.kernel, kernel);
        }
        let usual = super::super::Plan::new(&problem, &caps, Algorithm::Fused).expect("it fits").steps[0].key.kernel;
        for bad in ["tiles 0 0 0 0 0", "tiles 1000000 4 16 2 0", "decode 0 0", "matrix 8 4 32 32", "lanes 8 4 32 2"] {
            let kernel = read_kernel(bad);
            assert!(kernel.is_some(), "{bad} is well formed");
            let plan = super::super::Plan::of(&problem, &caps, Algorithm::Fused, kernel).expect("it fits");
            assert_eq!(plan.steps[0].key.kernel, usual, "{bad}");
        }
        for bad in ["", "tiles", "tiles 1 2 3", "lanes a b c d", "merge"] {
            assert_eq!(read_kernel(bad), None, "{bad}");
        }
    }

    #[test]
    fn classes() {
        let class = |len: usize| class_of(&Problem::new(Dims::self_attention(1, 8, len, 64)));
        assert_eq!(class(300), class(500));
        assert_ne!(class(300), class(600));
        assert_ne!(class(300), class_of(&Problem::new(Dims::self_attention(1, 8, 300, 64)).aligned(Alignment::TopLeft).causal()));
    }
}
