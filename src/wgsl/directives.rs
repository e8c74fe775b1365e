//! Directives at the head of a kernel, all in one place: those that naga needs and those of standard WGSL.

/// Extensions and rules for cooperative matrices, which only naga has. naga assumes that a branch on a variable or
/// after a return diverges and rejects matrices there, under the name of another rule; the kernel's branches never do.
pub(super) const MATRICES: &str = "enable f16;\nenable wgpu_cooperative_matrix;\ndiagnostic(off, derivative_uniformity);\n";

/// Extension for subgroup operations in standard WGSL. naga 30 has them without this line and rejects it.
const SUBGROUPS: &str = "enable subgroups;\n";

/// Rule for kernels that shuffle under a branch that is uniform because a vote of the subgroup decides it: the
/// standard's uniformity analysis takes no result of a subgroup operation for uniform.
const UNPROVEN: &str = "diagnostic(off, subgroup_uniformity);\n";

/// Files with branches that need [`UNPROVEN`].
const UNPROVEN_FILES: [&str; 1] = ["shaders/software/lanes.wgsl"];

/// Returns the directives that standard WGSL needs before `code`, from `files`; `None` if it cannot express `code`.
pub(super) fn standard(code: &str, mut files: impl Iterator<Item = &'static str>) -> Option<String> {
    if mentions(code, "coop_mat") {
        return None;
    }
    let uses_subgroups =
        mentions(code, "@builtin(subgroup") || (b'A'..=b'Z').any(|letter| mentions(code, &format!("subgroup{}", letter as char)));
    let subgroups = if uses_subgroups { SUBGROUPS } else { "" };
    let unproven = if files.any(|file| UNPROVEN_FILES.contains(&file)) { UNPROVEN } else { "" };
    Some(format!("{subgroups}{unproven}"))
}

/// True if `word` occurs in `code` outside comments.
fn mentions(code: &str, word: &str) -> bool {
    code.lines().filter_map(|line| line.split("//").next()).any(|line| line.contains(word))
}
