//! Memory that invocations share: its contents, which words were written, and the accesses since the last barrier.

use crate::report::{Findings, Rule};

/// Buffer that shaders bind.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(crate) memory: Memory,
}

impl Buffer {
    /// Creates a buffer that holds these bytes, padded with zeros to whole words.
    pub fn filled(bytes: &[u8]) -> Self {
        let words = bytes.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(word)
        });
        let words: Vec<u32> = words.collect();
        let defined = vec![true; words.len()];
        Self { memory: Memory { defined, ..Memory::new(words) } }
    }

    /// Creates a buffer of `bytes` unwritten bytes: each word is `poison`, and a read before a write is reported.
    pub fn unwritten(bytes: usize, poison: u32) -> Self {
        Self { memory: Memory::new(vec![poison; bytes.div_ceil(4)]) }
    }

    /// Returns the contents.
    pub fn bytes(&self) -> Vec<u8> {
        self.memory.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Returns the number of words that were never written.
    pub fn words_unwritten(&self) -> usize {
        self.memory.defined.iter().filter(|&&defined| !defined).count()
    }
}

/// Words, and the state of each.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) words: Vec<u32>,
    pub(crate) defined: Vec<bool>,
    /// One cell per word while accesses are tracked, else empty.
    cells: Vec<Cell>,
}

/// Last accesses to a word.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    wrote: Touch,
    read: Touch,
}

/// Access that others must be ordered after.
#[derive(Clone, Copy, Debug, Default)]
struct Touch {
    who: Who,
    line: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Plain,
    Atomic,
    /// Atomic operation that commutes with others of its kind.
    Commutes,
}

/// Invocation between two barriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    /// Number of the workgroup, from 1; 0 is nobody.
    pub(crate) workgroup: u32,
    /// Barriers that the workgroup has passed.
    pub(crate) epoch: u32,
    pub(crate) lane: u32,
}

const MANY: u32 = u32::MAX;

impl Who {
    /// True if no barrier orders the accesses of the two.
    fn is_concurrent(self, other: Self) -> bool {
        if self.workgroup == 0 {
            return false;
        }
        self.workgroup != other.workgroup || (self.epoch == other.epoch && self.lane != other.lane)
    }

    /// Merges both into one; `MANY` stands for several workgroups or lanes.
    fn and(self, other: Self) -> Self {
        if self.workgroup == 0 || (self.workgroup == other.workgroup && self.epoch != other.epoch) {
            other
        } else if self.workgroup != other.workgroup {
            Self { workgroup: MANY, ..other }
        } else if self.lane != other.lane {
            Self { lane: MANY, ..other }
        } else {
            self
        }
    }
}

/// Access to shared memory, with the data for a report.
pub(crate) struct Access<'a> {
    pub(crate) who: Who,
    pub(crate) line: u32,
    pub(crate) findings: &'a mut Findings,
}

impl Memory {
    pub(crate) fn new(words: Vec<u32>) -> Self {
        Self { defined: vec![false; words.len()], words, cells: Vec::new() }
    }

    /// Starts to track accesses, for memory that a dispatch writes to.
    pub(crate) fn follow(&mut self) {
        self.cells = vec![Cell::default(); self.words.len()];
    }

    /// Stops tracking and drops all accesses; whatever follows is ordered after them.
    pub(crate) fn forget(&mut self) {
        self.cells = Vec::new();
    }

    /// Makes the contents undefined.
    pub(crate) fn poison(&mut self, poison: u32) {
        self.words.fill(poison);
        self.defined.fill(false);
        self.cells.fill(Cell::default());
    }

    /// Returns a word, and the line of this access if the word is unwritten, else 0.
    pub(crate) fn read(&mut self, at: usize, atomic: bool, access: &mut Access<'_>) -> (u32, u32) {
        self.touch(at, access, false, if atomic { Kind::Atomic } else { Kind::Plain });
        (self.words[at], if self.defined[at] { 0 } else { access.line })
    }

    /// Writes a word. A value that depends on uninitialised memory leaves the word unwritten.
    pub(crate) fn write(&mut self, at: usize, (bits, origin): (u32, u32), access: &mut Access<'_>) {
        self.touch(at, access, true, Kind::Plain);
        self.words[at] = bits;
        self.defined[at] = origin == 0;
    }

    /// Records a write for race detection but changes nothing: the word is beside the component that is stored.
    pub(crate) fn write_beside(&mut self, at: usize, access: &mut Access<'_>) {
        self.touch(at, access, true, Kind::Plain);
    }

    pub(crate) fn atomic_store(&mut self, at: usize, bits: u32, access: &mut Access<'_>) {
        // Storing the value that is already there needs no order.
        if !self.defined[at] || self.words[at] != bits {
            self.touch(at, access, true, Kind::Atomic);
        }
        self.words[at] = bits;
        self.defined[at] = true;
    }

    /// Reads, changes and writes a word; returns the old one. With `partial`, the word may be unwritten.
    pub(crate) fn atomic_change(&mut self, at: usize, partial: bool, access: &mut Access<'_>, change: impl FnOnce(u32) -> u32) -> u32 {
        if !self.defined[at] && !partial {
            access.findings.add(Rule::Uninitialised, access.line, None, || format!("word {at}"));
        }
        self.touch(at, access, true, Kind::Commutes);
        let before = self.words[at];
        self.words[at] = change(before);
        self.defined[at] = true;
        before
    }

    fn touch(&mut self, at: usize, access: &mut Access<'_>, writes: bool, kind: Kind) {
        let Some(cell) = self.cells.get_mut(at) else { return };
        let now = Touch { who: access.who, line: access.line, kind };
        let mut conflict = |before: Touch| {
            let agree = kind == Kind::Commutes && before.kind == Kind::Commutes;
            if before.who.is_concurrent(now.who) && !agree {
                let atomic = kind != Kind::Plain && before.kind != Kind::Plain;
                let rule = if atomic { Rule::UnorderedAtomic } else { Rule::Race };
                access.findings.add(rule, now.line, Some(before.line), || {
                    let by = |who: Who| if who.lane == MANY { "several".into() } else { format!("invocation {}", who.lane) };
                    format!("word {at}, {} and {} of line {}", by(now.who), by(before.who), before.line)
                });
            }
        };
        conflict(cell.wrote);
        if writes {
            conflict(cell.read);
        }
        let touched = if writes { &mut cell.wrote } else { &mut cell.read };
        *touched = Touch { who: touched.who.and(now.who), ..now };
    }
}
