//! Findings: what a shader did that WGSL does not define or promise.

use std::fmt;

/// Kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Two invocations access one word with no barrier between, and one of them writes.
    Race,
    /// Two invocations' atomic accesses to one word that do not commute, with no barrier to order them.
    UnorderedAtomic,
    /// A value that depends on uninitialised memory decides a branch, an address or a result.
    Uninitialised,
    /// An index past the end of an array, a vector or a binding.
    OutOfBounds,
    /// A workgroup barrier that only some invocations of the workgroup run together.
    NonUniformBarrier,
    /// A subgroup operation that only some invocations of a subgroup run together.
    NonUniformSubgroup,
    /// A shuffle or broadcast from a lane that the subgroup does not have.
    NoSuchLane,
    /// A broadcast whose lane is not uniform in the subgroup, or a `workgroupUniformLoad` of several addresses.
    NonUniformArgument,
    /// A shift by 32 bits or more.
    Shift,
    /// A float converted to an integer that cannot hold it.
    Conversion,
    /// An integer division by zero or the smallest integer by -1.
    Division,
    /// A loop with more iterations than allowed, which is probably endless.
    EndlessLoop,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Race => "data race",
            Self::UnorderedAtomic => "atomics without order",
            Self::Uninitialised => "use of what nobody wrote",
            Self::OutOfBounds => "out of bounds",
            Self::NonUniformBarrier => "barrier in non-uniform control flow",
            Self::NonUniformSubgroup => "subgroup operation in non-uniform control flow",
            Self::NoSuchLane => "shuffle from a lane that is not there",
            Self::NonUniformArgument => "argument that must be uniform",
            Self::Shift => "shift by 32 bits or more",
            Self::Conversion => "conversion without a defined result",
            Self::Division => "integer division without a defined result",
            Self::EndlessLoop => "loop without an end",
        })
    }
}

/// Finding, reported once per line and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Kind of the finding.
    pub rule: Rule,
    /// Line of the shader's text, from 1.
    pub line: u32,
    /// Line of the other access of a race, or line at which the uninitialised memory was read.
    pub other: Option<u32>,
    /// Details of the first occurrence.
    pub detail: String,
    /// Number of occurrences.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {} ({} times)", self.line, self.rule, self.detail, self.count)
    }
}

/// Collection of findings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    pub(crate) fn add(&mut self, rule: Rule, line: u32, other: Option<u32>, detail: impl FnOnce() -> String) {
        let same = |known: &&mut Finding| known.rule == rule && known.line == line && known.other == other;
        match self.list.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => self.list.push(Finding { rule, line, other, detail: detail(), count: 1 }),
        }
    }

    pub(crate) fn into_list(mut self) -> Vec<Finding> {
        self.list.sort_by_key(|finding| (finding.line, finding.rule, finding.other));
        self.list
    }
}
