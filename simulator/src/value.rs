//! Values of all invocations of a workgroup: the registers of expressions, and the mask of running invocations.

/// Type of a scalar, or of a vector's components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    I32,
    U32,
    F32,
}

/// Registers of an expression: its scalars in order, each with one word per lane. A `bool` is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// First word within the registers of a lane.
    pub(crate) at: u32,
    pub(crate) words: u32,
    /// Kind of a scalar or vector; meaningless for composite types.
    pub(crate) kind: Kind,
}

impl Value {
    /// Returns some words of the value.
    pub(crate) const fn part(self, first: u32, words: u32, kind: Kind) -> Self {
        Self { at: self.at + first, words, kind }
    }
}

/// Registers of a workgroup, [words, lanes].
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) lanes: usize,
    pub(crate) data: Vec<u32>,
    /// Line of the read of uninitialised memory that a word depends on, else 0. Only valid for `tainted` words.
    origin: Vec<u32>,
    tainted: Vec<bool>,
}

impl Registers {
    pub(crate) fn new(words: usize, lanes: usize) -> Self {
        Self { lanes, data: vec![0; words * lanes], origin: vec![0; words * lanes], tainted: vec![false; words] }
    }

    /// Returns one word of a value, for all lanes.
    pub(crate) fn word(&self, value: Value, word: u32) -> &[u32] {
        let start = (value.at + word) as usize * self.lanes;
        &self.data[start..start + self.lanes]
    }

    pub(crate) fn word_mut(&mut self, value: Value, word: u32) -> &mut [u32] {
        let start = (value.at + word) as usize * self.lanes;
        &mut self.data[start..start + self.lanes]
    }

    pub(crate) fn get(&self, value: Value, word: u32, lane: usize) -> u32 {
        self.data[(value.at + word) as usize * self.lanes + lane]
    }

    /// Sets the value to `words` in every lane.
    pub(crate) fn fill(&mut self, value: Value, words: &[u32]) {
        self.clean(value);
        for (word, &bits) in words.iter().enumerate() {
            self.word_mut(value, word as u32).fill(bits);
        }
    }

    /// Copies a value for the lanes in `mask`.
    pub(crate) fn copy(&mut self, to: Value, from: Value, mask: &Mask) {
        for word in 0..to.words {
            let (from, to) = ((from.at + word) as usize, (to.at + word) as usize);
            let (first, into) = (from * self.lanes, to * self.lanes);
            if mask.is_full() {
                self.data.copy_within(first..first + self.lanes, into);
            } else {
                mask.lanes().for_each(|lane| self.data[into + lane] = self.data[first + lane]);
            }
            if self.tainted[from] || self.tainted[to] {
                mask.lanes().for_each(|lane| self.set_origin(to, lane, self.origin_of(from, lane)));
            }
        }
    }

    /// Copies a word from other registers for the lanes in `mask`.
    pub(crate) fn copy_word(&mut self, to: usize, other: &Self, from: usize, mask: &Mask) {
        let (first, into) = (from * self.lanes, to * self.lanes);
        if mask.is_full() {
            self.data[into..into + self.lanes].copy_from_slice(&other.data[first..first + self.lanes]);
        } else {
            mask.lanes().for_each(|lane| self.data[into + lane] = other.data[first + lane]);
        }
        if other.tainted[from] || self.tainted[to] {
            mask.lanes().for_each(|lane| self.set_origin(to, lane, other.origin_of(from, lane)));
        }
    }

    /// Sets one lane's word and its origin.
    pub(crate) fn set(&mut self, value: Value, word: u32, lane: usize, (bits, origin): (u32, u32)) {
        self.put((value.at + word) as usize, lane, (bits, origin));
    }

    pub(crate) fn put(&mut self, word: usize, lane: usize, (bits, origin): (u32, u32)) {
        self.data[word * self.lanes + lane] = bits;
        if origin != 0 || self.tainted[word] {
            self.set_origin(word, lane, origin);
        }
    }

    /// Returns the line of the read of uninitialised memory that a lane's word depends on, else 0.
    pub(crate) fn origin(&self, value: Value, word: u32, lane: usize) -> u32 {
        self.origin_of((value.at + word) as usize, lane)
    }

    pub(crate) fn origin_of(&self, word: usize, lane: usize) -> u32 {
        if self.tainted[word] { self.origin[word * self.lanes + lane] } else { 0 }
    }

    fn set_origin(&mut self, word: usize, lane: usize, origin: u32) {
        if !self.tainted[word] {
            if origin == 0 {
                return;
            }
            self.origin[word * self.lanes..][..self.lanes].fill(0);
            self.tainted[word] = true;
        }
        self.origin[word * self.lanes + lane] = origin;
    }

    /// Returns the first nonzero origin among the words of a lane's value, else 0.
    pub(crate) fn any_origin(&self, value: Value, lane: usize) -> u32 {
        (0..value.words).map(|word| self.origin(value, word, lane)).find(|&origin| origin != 0).unwrap_or(0)
    }

    /// True if a word of the value may depend on uninitialised memory.
    pub(crate) fn is_tainted(&self, value: Value) -> bool {
        self.tainted[value.at as usize..(value.at + value.words) as usize].contains(&true)
    }

    /// Marks the value as initialised in all lanes.
    pub(crate) fn clean(&mut self, value: Value) {
        self.tainted[value.at as usize..(value.at + value.words) as usize].fill(false);
    }
}

/// Set of lanes that run a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    /// Empty if all lanes run, or none.
    on: Vec<bool>,
    count: usize,
    lanes: usize,
}

impl Mask {
    pub(crate) const fn all(lanes: usize) -> Self {
        Self { on: Vec::new(), count: lanes, lanes }
    }

    pub(crate) const fn none(lanes: usize) -> Self {
        Self { on: Vec::new(), count: 0, lanes }
    }

    fn of(on: Vec<bool>) -> Self {
        let (count, lanes) = (on.iter().filter(|&&on| on).count(), on.len());
        if count == 0 || count == lanes { Self { on: Vec::new(), count, lanes } } else { Self { on, count, lanes } }
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.count == self.lanes
    }

    pub(crate) fn has(&self, lane: usize) -> bool {
        if self.on.is_empty() { self.count > 0 } else { self.on[lane] }
    }

    /// Returns the lanes of the set, in order.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = usize> {
        (0..if self.count == 0 { 0 } else { self.lanes }).filter(|&lane| self.has(lane))
    }

    /// Returns the lanes of the set for which `keep` is true.
    pub(crate) fn filter(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        Self::of((0..self.lanes).map(|lane| self.has(lane) && keep(lane)).collect())
    }

    /// Splits the set by a condition: the lanes where it is true, and the others.
    pub(crate) fn split(self, condition: &[u32]) -> (Self, Self) {
        let lanes = self.lanes;
        let yes = if self.is_full() {
            condition.iter().filter(|&&condition| condition != 0).count()
        } else {
            self.lanes().filter(|&lane| condition[lane] != 0).count()
        };
        if yes == self.count {
            return (self, Self::none(lanes));
        }
        if yes == 0 {
            return (Self::none(lanes), self);
        }
        (self.filter(|lane| condition[lane] != 0), self.filter(|lane| condition[lane] == 0))
    }

    /// Adds the lanes of another set.
    pub(crate) fn join(&mut self, other: &Self) {
        if other.is_empty() || self.is_full() {
            return;
        }
        if self.is_empty() || other.is_full() {
            self.clone_from(other);
            return;
        }
        *self = Self::of((0..self.lanes).map(|lane| self.has(lane) || other.has(lane)).collect());
    }
}
