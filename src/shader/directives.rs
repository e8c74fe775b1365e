//! Directives at the head of a kernel's text, all in one place: what naga wants to be told, and what the standard does.

/// Extensions and rules for cooperative matrices, which only naga has. naga takes every branch on a variable or behind a return for one
/// that splits a subgroup, and refuses matrices there, by the name of another rule; the kernel's own branches split none.
pub(super) const MATRICES: &str = "enable f16;\nenable wgpu_cooperative_matrix;\ndiagnostic(off, derivative_uniformity);\n";

/// Extension for subgroup operations in standard WGSL. naga 30 has them without it and refuses the line.
const SUBGROUPS: &str = "enable subgroups;\n";

/// Rule for kernels that shuffle under a branch that all lanes take together, because a reduction over the subgroup decides it: the
/// standard's analysis believes no subgroup operation to be uniform.
const UNPROVEN: &str = "diagnostic(off, subgroup_uniformity);\n";

/// Files with such branches.
const UNPROVEN_FILES: [&str; 1] = ["shaders/fused/few.wgsl"];

/// Returns the directives that standard WGSL wants before `code`, which is made of `files`; `None` where it cannot express the code.
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

/// True if `word` is somewhere in `code` outside of comments.
fn mentions(code: &str, word: &str) -> bool {
    code.lines().filter_map(|line| line.split("//").next()).any(|line| line.contains(word))
}
