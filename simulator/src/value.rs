//! Values of all invocations of a workgroup, side by side: the registers of expressions, and which invocations are running.

/// Type of a scalar, or of a vector's components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    I32,
    U32,
    F32,
}

/// Registers of an expression: its scalars in order, each a word for every lane. A `bool` is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// First word among those of a lane.
    pub(crate) at: u32,
    pub(crate) words: u32,
    /// Kind of a scalar or vector; of composite types it means nothing.
    pub(crate) kind: Kind,
}

impl Value {
    /// Some of its words.
    pub(crate) const fn part(self, first: u32, words: u32, kind: Kind) -> Self {
        Self { at: self.at + first, words, kind }
    }
}

/// The registers of a workgroup: word by word, in each word lane by lane.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) lanes: usize,
    pub(crate) data: Vec<u32>,
    /// Line that read what nobody wrote, where a word comes of that; else 0. Of words that are not `tainted` it means nothing.
    origin: Vec<u32>,
    tainted: Vec<bool>,
}

impl Registers {
    pub(crate) fn new(words: usize, lanes: usize) -> Self {
        Self { lanes, data: vec![0; words * lanes], origin: vec![0; words * lanes], tainted: vec![false; words] }
    }

    /// One word of a value, of all lanes.
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

    /// Gives every lane the same words.
    pub(crate) fn fill(&mut self, value: Value, words: &[u32]) {
        self.clean(value);
        for (word, &bits) in words.iter().enumerate() {
            self.word_mut(value, word as u32).fill(bits);
        }
    }

    /// Copies a value, of the lanes in `mask`.
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

    /// Copies a word from other registers, of the lanes in `mask`.
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

    /// Sets one lane's word, and where it comes from.
    pub(crate) fn set(&mut self, value: Value, word: u32, lane: usize, (bits, origin): (u32, u32)) {
        self.put((value.at + word) as usize, lane, (bits, origin));
    }

    pub(crate) fn put(&mut self, word: usize, lane: usize, (bits, origin): (u32, u32)) {
        self.data[word * self.lanes + lane] = bits;
        if origin != 0 || self.tainted[word] {
            self.set_origin(word, lane, origin);
        }
    }

    /// Line that read what nobody wrote, if a lane's word comes of that; else 0.
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

    /// The first origin among all words of a lane's value.
    pub(crate) fn any_origin(&self, value: Value, lane: usize) -> u32 {
        (0..value.words).map(|word| self.origin(value, word, lane)).find(|&origin| origin != 0).unwrap_or(0)
    }

    /// True if a lane's word may come of what nobody wrote.
    pub(crate) fn is_tainted(&self, value: Value) -> bool {
        self.tainted[value.at as usize..(value.at + value.words) as usize].contains(&true)
    }

    /// Takes all its lanes for written.
    pub(crate) fn clean(&mut self, value: Value) {
        self.tainted[value.at as usize..(value.at + value.words) as usize].fill(false);
    }
}

/// The lanes that run a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    /// Empty where all lanes run, or none.
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

    /// The lanes, in order.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = usize> {
        (0..if self.count == 0 { 0 } else { self.lanes }).filter(|&lane| self.has(lane))
    }

    /// The lanes of this one that are `keep`.
    pub(crate) fn filter(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        Self::of((0..self.lanes).map(|lane| self.has(lane) && keep(lane)).collect())
    }

    /// Splits it by a condition: the lanes where it is true, and the others.
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

    /// Adds the lanes of another one.
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
