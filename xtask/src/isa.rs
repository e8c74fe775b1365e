//! Shares of multiply-adds in AMD machine code; matrix instructions in AMD and NVIDIA code.

use std::collections::HashMap;

/// Shares of multiply-adds in the vector instructions of a loop. An instruction counts once, however often it runs.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Shares {
    /// Share in the loop with the most vector instructions, inner loops included: a pass over a tile of keys. Without
    /// any loop, the share in the whole shader.
    pub(crate) largest_loop: f64,
    /// Smallest share in innermost loops that have at least half as many multiply-adds as the one with the most.
    pub(crate) inner_loop: f64,
}

#[derive(Clone, Copy, Default)]
struct Count {
    vector: u32,
    multiply_add: u32,
}

impl Count {
    fn share(self) -> f64 {
        f64::from(self.multiply_add) / f64::from(self.vector.max(1))
    }
}

/// Parses the driver's assembly: blocks `BB7:`, and a loop wherever a branch goes back to its own or an earlier block.
pub(crate) fn shares(assembly: &str) -> Shares {
    let lines: Vec<&str> = assembly.lines().map(|line| line.split(';').next().unwrap_or_default().trim()).collect();
    let mut blocks: HashMap<&str, usize> = HashMap::new();
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(label) = line.strip_suffix(':') {
            blocks.insert(label, at);
        } else if let Some((operation, label)) = line.split_once(' ')
            && (operation == "s_branch" || operation.starts_with("s_cbranch"))
            && let Some(&start) = blocks.get(label.trim())
        {
            loops.push((start, at));
        }
    }
    let count = |&(start, end): &(usize, usize)| lines[start..=end].iter().fold(Count::default(), |sum, line| add(sum, line));
    let has_inner = |&(start, end): &(usize, usize)| loops.iter().any(|&(s, e)| (s, e) != (start, end) && s >= start && e <= end);
    let whole = lines.iter().fold(Count::default(), |sum, line| add(sum, line));
    let largest = loops.iter().map(count).max_by_key(|count| count.vector).unwrap_or(whole);
    let inner: Vec<Count> = loops.iter().filter(|range| !has_inner(range)).map(count).collect();
    let most = inner.iter().map(|count| count.multiply_add).max().unwrap_or(0);
    let worst = inner.iter().filter(|count| 2 * count.multiply_add >= most).map(|count| count.share()).reduce(f64::min);
    Shares { largest_loop: largest.share(), inner_loop: worst.unwrap_or(whole.share()) }
}

/// Counts matrix instructions in AMD (WMMA) or NVIDIA (HMMA) assembly, each once. NVIDIA's are half as large: 16x8x16.
pub(crate) fn matrix_instructions(assembly: &str) -> u32 {
    let is_one = |line: &&str| line.trim_start().starts_with("v_wmma") || line.contains("= hmma.");
    assembly.lines().filter(is_one).count() as u32
}

/// Adds a line to `sum`: one vector instruction, or two that are issued together (`v_dual_x .. :: v_dual_y ..`).
fn add(mut sum: Count, line: &str) -> Count {
    for instruction in line.split(" :: ") {
        if let Some(operation) = instruction.trim().strip_prefix("v_") {
            let operation = operation.strip_prefix("dual_").unwrap_or(operation);
            sum.vector += 1;
            if ["fma", "pk_fma", "dot", "wmma"].iter().any(|prefix| operation.starts_with(prefix)) {
                sum.multiply_add += 1;
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found() {
        let assembly = "\
BB0:
	v_mov_b32_e32 v0, 0                                         ; 7e000280
	s_cbranch_scc0 BB3                                          ; forward: no loop
BB1:
	v_add_f32_e32 v0, v1, v2                                    ; 06000501
	v_mul_f32_e32 v0, v1, v2                                    ; 10000501
BB2:
	v_fmac_f32_e32 v78, v57, v47                                ; 569c5f39
	v_dual_fmac_f32 v1, v2, v3 :: v_dual_mov_b32 v4, v5         ; c8100101
	s_cbranch_scc1 BB2                                          ; bfa2fffc
BB4:
	v_fmac_f32_e32 v78, v57, v47                                ; 569c5f39
	v_mov_b32_e32 v0, 0                                         ; 7e000280
	ds_load_b64 v[48:49], v61                                   ; no vector instruction
	s_cbranch_scc1 BB4                                          ; bfa2fffc
	s_branch BB1                                                ; bfa0fff8
BB3:
	s_endpgm                                                    ; bfb00000
";
        let shares = shares(assembly);
        assert_eq!(shares, Shares { largest_loop: 3.0 / 7.0, inner_loop: 1.0 / 2.0 });
    }

    #[test]
    fn matrix_instructions_are_counted() {
        let amd = "\tv_wmma_f32_16x16x16_f16 v[88:91], v[128:135], v[144:151], v[88:91] ; cc404\n\tv_mov_b32_e32 v0, 0\n";
        let nvidia = "      r128..132 = hmma.m16n8k16.f32 r8..12 r120..122 r124..128 // delay=1\n      ur0       = s2r sr[0x25]\n";
        assert_eq!([amd, nvidia, ""].map(matrix_instructions), [1, 1, 0]);
    }

    #[test]
    fn straight_code_is_counted_whole() {
        assert_eq!(shares("BB0:\n\tv_fma_f32 v0, v1, v2, v3\n\tv_mov_b32_e32 v0, 0\n").largest_loop, 0.5);
    }
}
