//! Life of many sequences in a cache, and the dull model that the cache is compared with: the names of each one's tokens.

use std::collections::BTreeMap;

use fastrand::Rng;
use wgpu_attention::cache::{CacheShape, KeptRows};
use wgpu_attention::verify::Expected;
use wgpu_attention::{Dims, Error, Inputs, Layout, PageTable, Problem, Result as Answer, TensorSpec, Term, gather};

use super::subject::{ROWS, Step, Subject, masked, row, sides, stored};

/// Number of steps between two comparisons of attention, and of all that is stored.
const EVERY: u64 = 50;

/// Numbers of requests, and of what they changed.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct Counts {
    pub(super) steps: u64,
    pub(super) tokens: u64,
    pub(super) started: u64,
    pub(super) forked: u64,
    pub(super) ended: u64,
    pub(super) truncated: u64,
    pub(super) kept: u64,
    /// Requests that were refused, and those of them for want of pages.
    pub(super) refused: u64,
    pub(super) full: u64,
    /// Rows of attention that were compared.
    pub(super) rows: u64,
    /// Fewest free pages.
    pub(super) least_free: usize,
}

/// Sequences in a cache, driven by a random scheduler.
pub(super) struct Life {
    rng: Rng,
    shape: CacheShape,
    /// Number of tokens of the longest possible sequence.
    capacity: usize,
    subject: Box<dyn Subject>,
    /// Names of the tokens of each slot's sequence.
    sequences: Vec<Option<Vec<u64>>>,
    named: u64,
    /// True if the last request found too few pages.
    is_full: bool,
    /// True if attention is to be compared at the next step.
    is_due: bool,
    pub(super) counts: Counts,
}

impl Life {
    pub(super) fn new(seed: u64, shape: CacheShape, slots: usize, capacity: usize, subject: Box<dyn Subject>) -> Self {
        let counts = Counts { least_free: shape.pages, ..Counts::default() };
        let (rng, sequences) = (Rng::with_seed(seed), vec![None; slots]);
        Self { rng, shape, capacity, subject, sequences, named: 0, is_full: false, is_due: true, counts }
    }

    /// Makes one request of the cache, and checks what it did. Errors: what is wrong.
    pub(super) fn step(&mut self) -> Result<(), String> {
        self.counts.steps += 1;
        self.is_due |= self.counts.steps.is_multiple_of(EVERY);
        // Where pages have run out, a sequence gives some back.
        match self.rng.u8(if self.is_full { 12 } else { 0 }..16) {
            0 | 1 => self.start()?,
            2 | 3 => self.fork()?,
            4..12 => self.grow()?,
            12 => self.truncate()?,
            13 => self.keep()?,
            _ => self.end()?,
        }
        self.check()
    }

    fn is_windowed(&self) -> bool {
        self.shape.window_left.is_some()
    }

    fn start(&mut self) -> Result<(), String> {
        let is_full = self.sequences.iter().all(Option::is_some);
        if let Some(slot) = self.request("start", [is_full, false], |subject| subject.start())? {
            self.counts.started += 1;
            self.take("start", slot, Vec::new())?;
        }
        Ok(())
    }

    fn fork(&mut self) -> Result<(), String> {
        let (slot, prefix) = self.some_tokens();
        let names = self.sequences[slot].as_ref().and_then(|names| names.get(..prefix)).map(<[u64]>::to_vec);
        let must_not = names.is_none() || self.sequences.iter().all(Option::is_some);
        if let Some(to) = self.request("fork", [must_not, self.is_windowed()], |subject| subject.fork(slot, prefix))? {
            self.counts.forked += 1;
            self.take("fork", to, names.unwrap_or_default())?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let slot = self.rng.usize(..self.sequences.len());
        if self.request("end", [self.sequences[slot].is_none(), false], |subject| subject.end(slot))?.is_some() {
            self.counts.ended += 1;
            (self.sequences[slot], self.is_full) = (None, false);
        }
        Ok(())
    }

    fn truncate(&mut self) -> Result<(), String> {
        let (slot, length) = self.some_tokens();
        let must_not = self.sequences[slot].as_ref().is_none_or(|names| length > names.len());
        if self.request("truncate", [must_not, self.is_windowed()], |subject| subject.truncate(slot, length))?.is_some() {
            self.counts.truncated += 1;
            self.is_full = false;
            self.sequences[slot].iter_mut().for_each(|names| names.truncate(length));
        }
        Ok(())
    }

    /// Keeps some of a sequence's last tokens, as the accepted path of a tree.
    fn keep(&mut self) -> Result<(), String> {
        let (slot, before) = self.some_tokens();
        let length = self.sequences[slot].as_ref().map_or(0, Vec::len);
        let last = length.checked_sub(before).unwrap_or(before);
        let mut rows: Vec<usize> = (0..last).filter(|_| self.rng.bool()).collect();
        rows.extend((self.rng.u8(..16) == 0).then_some(last));
        let must_not = self.sequences[slot].is_none() || last > length || rows.last() == Some(&last);
        let kept = KeptRows { slot, last, rows: &rows };
        if self.request("keep", [must_not, self.is_windowed()], |subject| subject.keep(kept))?.is_some() {
            self.counts.kept += 1;
            self.is_full = false;
            let names = self.sequences[slot].get_or_insert_default();
            let tree = names.split_off(length - last);
            names.extend(rows.iter().map(|&row| tree[row]));
        }
        Ok(())
    }

    /// Some slot, and a number of tokens that its sequence has; sometimes one more.
    fn some_tokens(&mut self) -> (usize, usize) {
        let slot = self.rng.usize(..self.sequences.len());
        let length = self.sequences[slot].as_ref().map_or(0, Vec::len);
        // Near its end too: a window keeps little else.
        let first = if self.rng.u8(..4) > 0 { length.saturating_sub(ROWS) } else { 0 };
        (slot, self.rng.usize(first..length + 2))
    }

    /// Extends some sequences, and runs the steps.
    fn grow(&mut self) -> Result<(), String> {
        let steps = if self.rng.u8(..4) == 0 { self.subject.most_steps() } else { 1 };
        let is_nonsense = self.rng.u8(..16) == 0;
        let mut tokens = Vec::new();
        for names in &self.sequences {
            let room = names.as_ref().map_or(0, |names| (self.capacity - names.len()) / steps);
            let count = if self.rng.u8(..4) == 0 { self.rng.usize(1..=ROWS).min(room) } else { 0 };
            tokens.push(if is_nonsense && names.is_none() { 1 } else { count });
        }
        let must_not = self.sequences.iter().zip(&tokens).any(|(names, &count)| names.is_none() && count > 0);
        if self.request("extend", [must_not, false], |subject| subject.extend(&tokens, steps))?.is_none() {
            return Ok(());
        }
        for _ in 0..steps {
            for (names, &count) in self.sequences.iter_mut().zip(&tokens) {
                names.iter_mut().for_each(|names| names.extend(self.named..self.named + count as u64));
                self.named += count as u64;
            }
            self.run(&tokens)?;
        }
        self.counts.tokens += (steps * tokens.iter().sum::<usize>()) as u64;
        Ok(())
    }

    /// Runs a step whose new tokens are named already.
    fn run(&mut self, tokens: &[usize]) -> Result<(), String> {
        let names: Vec<Vec<u64>> = self.sequences.iter().zip(tokens).map(|(names, &count)| last(names.as_deref(), count)).collect();
        let layers = self.shape.layers.iter().enumerate();
        let rows: Vec<[Vec<f32>; 3]> = layers
            .map(|(layer, shape)| {
                let mut side = 0..;
                sides(shape).map(|(heads, dim)| new_rows(&names, layer, side.next().unwrap_or(0), heads * dim))
            })
            .collect();
        let attends = self.is_due && names.iter().any(|names| !names.is_empty());
        let outputs = self.subject.step(&Step { tokens, rows: &rows }, attends).map_err(|error| format!("a step: {error}"))?;
        if attends {
            self.is_due = false;
            for (layer, output) in outputs.iter().enumerate() {
                self.compare_stored(layer)?;
                self.compare_attention(layer, tokens, &rows[layer][0], output)?;
            }
        }
        Ok(())
    }

    /// Asks the cache. `None` if it refuses, which it must in the first case, may in the second, and may where there are
    /// too few pages; then nothing has changed.
    fn request<T>(
        &mut self,
        what: &str,
        [must_not, may_not]: [bool; 2],
        ask: impl FnOnce(&mut dyn Subject) -> Answer<T>,
    ) -> Result<Option<T>, String> {
        let before = self.subject.pool().clone();
        let error = match ask(&mut *self.subject) {
            Ok(_) if must_not => return Err(format!("{what} must be refused, but was done")),
            Ok(done) => return Ok(Some(done)),
            Err(error) => error,
        };
        self.counts.refused += 1;
        let too_few = match error {
            Error::Limit { limit: "pages of the pool", needed, available, .. } => {
                needed > available && available == before.free_pages() as u64
            }
            _ => false,
        };
        self.counts.full += u64::from(too_few);
        self.is_full |= too_few;
        if !(must_not || may_not || too_few && ["extend", "keep"].contains(&what)) {
            return Err(format!("{what} was refused: {error}"));
        }
        if *self.subject.pool() != before {
            return Err(format!("{what} was refused, but changed the pool: {error}"));
        }
        Ok(None)
    }

    fn take(&mut self, what: &str, slot: usize, names: Vec<u64>) -> Result<(), String> {
        match self.sequences[slot].replace(names) {
            None => Ok(()),
            Some(_) => Err(format!("{what} was given slot {slot}, which is taken")),
        }
    }

    /// Checks lengths, that each page is free or has an owner, and that owners of one page mean the same tokens by it.
    fn check(&mut self) -> Result<(), String> {
        let page_size = self.shape.page_size;
        let mut owned: BTreeMap<u32, Vec<&[u64]>> = BTreeMap::new();
        for (slot, names) in self.sequences.iter().enumerate() {
            let length = self.subject.length(slot).ok();
            if length != names.as_ref().map(Vec::len) {
                return Err(format!("slot {slot} has {length:?} tokens instead of {:?}", names.as_ref().map(Vec::len)));
            }
            let Some(names) = names else { continue };
            let pages = self.subject.pages(slot).map_err(|error| error.to_string())?;
            if pages.len() != names.len().div_ceil(page_size) {
                return Err(format!("slot {slot} has {} pages for {} tokens", pages.len(), names.len()));
            }
            for (&page, names) in pages.iter().zip(names.chunks(page_size)).filter(|&(&page, _)| page != PageTable::UNUSED) {
                owned.entry(page).or_default().push(names);
            }
        }
        let (free, all) = (self.subject.pool().free_pages(), self.subject.pool().pages());
        if owned.len() + free != all {
            return Err(format!("{} pages have owners and {free} are free, of {all}: a page is lost or owned twice", owned.len()));
        }
        for (page, owners) in owned {
            let agree = |one: &[u64], other: &[u64]| one.iter().zip(other).all(|(one, other)| one == other);
            if owners.iter().any(|names| !agree(names, owners[0])) {
                return Err(format!("page {page} is owned twice, as tokens {owners:?}"));
            }
        }
        self.counts.least_free = self.counts.least_free.min(free);
        Ok(())
    }

    /// Compares all keys and values of the sequences, bit by bit.
    fn compare_stored(&self, layer: usize) -> Result<(), String> {
        let (shape, page_size, pages) = (&self.shape.layers[layer], self.shape.page_size, self.subject.pool().pages());
        let pools = self.subject.stored(layer).map_err(|error| error.to_string())?;
        for (side, pool) in (1..).zip(pools) {
            let (heads, dim) = sides(shape)[side];
            let spec = TensorSpec::new(pool.as_slice().dtype(), self.shape.layout);
            let dense = gather(pool.as_slice(), &spec, [pages, heads, page_size, dim]);
            for (slot, names) in self.sequences.iter().enumerate() {
                let Some(names) = names else { continue };
                let pages = self.subject.pages(slot).map_err(|error| error.to_string())?;
                for (position, &name) in names.iter().enumerate().filter(|&(position, _)| pages[position / page_size] != PageTable::UNUSED)
                {
                    let expected = stored(row(name, layer, side, heads * dim), shape, side);
                    for (head, expected) in expected.chunks(dim).enumerate() {
                        let page = pages[position / page_size] as usize;
                        let got = &dense[((page * heads + head) * page_size + position % page_size) * dim..][..dim];
                        if got != expected {
                            let side = ["keys", "values"][side - 1];
                            return Err(format!(
                                "layer {layer}, slot {slot}: the {side} at {position}, on page {page}, are another token's"
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares the attention of new rows with the oracle's on all tokens of each sequence.
    fn compare_attention(&mut self, layer: usize, tokens: &[usize], query: &[f32], output: &[f32]) -> Result<(), String> {
        let shape = &self.shape.layers[layer];
        let [(num_heads, head_dim), _, (num_kv_heads, head_dim_v)] = sides(shape);
        for (slot, (names, &rows)) in self.sequences.iter().zip(tokens).enumerate().filter(|&(_, (_, &rows))| rows > 0) {
            let names = names.as_deref().unwrap_or_default();
            let all = |side: usize, width: usize| -> Vec<f32> {
                names.iter().flat_map(|&name| stored(row(name, layer, side, num_kv_heads * width), shape, side)).collect()
            };
            let (key, value) = (all(1, head_dim), all(2, head_dim_v));
            let dims = Dims { batch: 1, num_heads, num_kv_heads, seq_len_q: rows, seq_len_kv: names.len(), head_dim, head_dim_v };
            let mut problem = self.windowed(masked(Problem::new(dims)))?.hadamard(shape.key_hadamard, shape.value_hadamard);
            for spec in [&mut problem.query, &mut problem.key, &mut problem.value, &mut problem.output] {
                spec.layout = Layout::Bshd;
            }
            let of_slot = |all: &[f32], width: usize| all[((slot + 1) * ROWS - rows) * width..(slot + 1) * ROWS * width].to_vec();
            let query = of_slot(query, num_heads * head_dim);
            let expected = Expected::of(&problem, &Inputs::new(&query, &key, &value)).map_err(|error| error.to_string())?;
            let got = of_slot(output, num_heads * head_dim_v);
            let got = gather((&got).into(), &problem.output, [1, num_heads, rows, head_dim_v]);
            let of = |mismatch| format!("layer {layer}, slot {slot} of {} tokens: the output {mismatch}", names.len());
            expected.output.compare(&got).map_err(of)?;
            self.counts.rows += rows as u64;
        }
        Ok(())
    }

    /// Masks what a cache with a window does not keep.
    fn windowed(&self, problem: Problem) -> Result<Problem, String> {
        let Some(left) = self.shape.window_left else { return Ok(problem) };
        let text =
            format!("fn visible(at: Pair) -> bool {{ return at.key < {} || at.position - at.key <= {left}; }}", self.shape.first_tokens);
        Term::wgsl(&text).map(|term| problem.with_term(term)).map_err(|error| error.to_string())
    }
}

/// Last `count` names.
fn last(names: Option<&[u64]>, count: usize) -> Vec<u64> {
    names.map_or(Vec::new(), |names| names[names.len() - count..].to_vec())
}

/// Rows [slots, ROWS, heads, dim] of which the last of each slot are those of `names`; others are NaN.
fn new_rows(names: &[Vec<u64>], layer: usize, side: usize, width: usize) -> Vec<f32> {
    let of_slot = |names: &Vec<u64>| {
        let mut rows = vec![f32::NAN; (ROWS - names.len()) * width];
        rows.extend(names.iter().flat_map(|&name| row(name, layer, side, width)));
        rows
    };
    names.iter().flat_map(of_slot).collect()
}
