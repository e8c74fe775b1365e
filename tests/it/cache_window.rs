//! Caches with a window: which pages they give back, compared with a dull model and with caches that keep everything.

use crate::common::buffers::{draw, read};
use crate::common::stack::{Stack, gpus};
use crate::common::{agree, cpu};
use fastrand::Rng;
use wgpu_attention::cache::{
    CachePlan, CacheShape, CacheSize, Growth, KeptRows, KvCache, LayerShape, Ledger, PagePool, Queries, StateWrite,
};
use wgpu_attention::gpu::DeviceCache;
use wgpu_attention::plan::DeviceCaps;
use wgpu_attention::verify::Expected;
use wgpu_attention::{Algorithm, Alignment, Error, Inputs, Layout, PageTable, Problem, Result, ScoreStage, Term};

/// Window, and first tokens that are kept.
#[derive(Clone, Copy, Debug)]
struct Kept {
    left: u32,
    first: u32,
}

impl Kept {
    fn shape(self, shape: CacheShape) -> CacheShape {
        shape.window(self.left).keep_first(self.first)
    }

    /// True if a row at `position` sees `key`.
    fn sees(self, position: usize, key: usize) -> bool {
        key <= position && (key < self.first as usize || position - key <= self.left as usize)
    }

    /// Masks what is not kept in a problem over a cache that keeps everything.
    fn mask(self, problem: Problem) -> Problem {
        let problem = problem.aligned(Alignment::BottomRight).causal();
        let Self { left, first } = self;
        if first == 0 {
            return problem.window(Some(left), None);
        }
        let text = format!("fn visible(at: Pair) -> bool {{ return at.key < {first} || at.position - at.key <= {left}; }}");
        problem.with_term(Term::wgsl(&text).expect("valid"))
    }
}

/// Dull model of a cache on a device: a ledger, a state and pools whose elements are names of tokens, and all tokens of
/// each sequence.
struct Model {
    kept: Kept,
    size: CacheSize,
    page_size: usize,
    ledger: Ledger,
    state: Vec<u32>,
    pools: Vec<u64>,
    sequences: Vec<Option<Vec<u64>>>,
    tokens: u64,
}

impl Model {
    fn new(kept: Kept, size: CacheSize, page_size: usize, pages: usize) -> Self {
        let shape = kept.shape(CacheShape::uniform(1, LayerShape::new(1, 4)).page_size(page_size).pages(pages));
        let plan = CachePlan::new(shape, size, &DeviceCaps::webgpu_defaults()).expect("a cache");
        let (ledger, state) = (plan.ledger().expect("room"), vec![0; plan.state_bytes() as usize / 4]);
        let (pools, sequences) = (vec![0; pages * page_size], vec![None; size.slots]);
        Self { kept, size, page_size, ledger, state, pools, sequences, tokens: 0 }
    }

    fn write(&mut self) {
        for StateWrite { offset, words } in self.ledger.take_writes() {
            self.state[offset..offset + words.len()].copy_from_slice(&words);
        }
    }

    /// Place in the pools of a token of a slot, by the device's page table.
    fn place(&self, slot: usize, position: usize) -> usize {
        let page = self.state[4 * self.size.slots + slot * self.size.pages_per_slot + position / self.page_size];
        page as usize * self.page_size + position % self.page_size
    }

    fn holds(&self, slot: usize, key: usize) {
        let tokens = self.sequences[slot].as_ref().expect("a sequence");
        let (found, expected) = (self.pools[self.place(slot, key)], tokens[key]);
        let (length, page_size) = (tokens.len(), self.page_size);
        assert_eq!(found, expected, "{:?}, pages of {page_size}: key {key} of slot {slot} with {length} tokens", self.kept);
    }

    /// Checks the keys that a row sees: all, or those where windows begin and end.
    fn look(&self, slot: usize, position: usize, all: bool) {
        let start = position.saturating_sub(self.kept.left as usize);
        let first = self.kept.first as usize;
        let keys: Vec<usize> =
            if all { (0..=position).collect() } else { vec![0, first.saturating_sub(1), first, start, start + self.page_size, position] };
        keys.into_iter().filter(|&key| self.kept.sees(position, key)).for_each(|key| self.holds(slot, key));
    }

    /// Extends, and runs the steps as a device does. New rows look at their keys after each step.
    fn extend(&mut self, tokens: &[usize], steps: usize, all: bool) -> Result<usize> {
        let copies = self.ledger.extend(Growth { tokens, steps })?;
        self.write();
        let written: Vec<u32> = copies.iter().map(|copy| copy[1]).collect();
        for (n, &[from, to]) in copies.iter().enumerate() {
            assert!(!written.contains(&from) && !written[..n].contains(&to));
            let from = from as usize * self.page_size;
            self.pools.copy_within(from..from + self.page_size, to as usize * self.page_size);
        }
        let slots = self.size.slots;
        for _ in 0..steps {
            for (slot, &count) in tokens.iter().enumerate() {
                let (old, added) = (self.state[slot], self.state[slots + slot]);
                assert_eq!(added as usize, count);
                self.state[slot] += added;
                assert!(self.state[slot] <= self.state[2 * slots + slot], "no room for a step that was promised");
                for position in old..self.state[slot] {
                    self.tokens += 1;
                    let place = self.place(slot, position as usize);
                    self.pools[place] = self.tokens;
                    self.sequences[slot].as_mut().expect("a sequence").push(self.tokens);
                }
            }
            for (slot, count) in tokens.iter().enumerate() {
                let length = self.state[slot] as usize;
                (length - count..length).for_each(|position| self.look(slot, position, all || position.is_multiple_of(9973)));
            }
        }
        Ok(copies.len())
    }

    /// Keeps, and makes the copies in their order. Returns their number.
    fn keep(&mut self, kept: &[KeptRows<'_>]) -> Result<usize> {
        let lost = kept.iter().any(|&KeptRows { slot, last, rows }| {
            let pages = self.ledger.pages(slot).unwrap_or_default();
            let Some(base) = self.ledger.length(slot).ok().and_then(|length| length.checked_sub(last)) else { return true };
            let is_gone = |row: &usize| pages[(base + row) / self.page_size] == PageTable::UNUSED;
            self.misses(slot, base + rows.len()) || rows.iter().any(is_gone)
        });
        let moves = self.ledger.keep(kept).inspect_err(|error| {
            assert!(lost || matches!(error, Error::Limit { limit: "pages of the pool", .. }), "{kept:?}: {error}");
        })?;
        for &[from, to] in &moves {
            self.pools[to] = self.pools[from];
        }
        for KeptRows { slot, last, rows } in kept {
            let tokens = self.sequences[*slot].as_mut().expect("a sequence");
            let tree = tokens.split_off(tokens.len() - last);
            tokens.extend(rows.iter().map(|&row| tree[row]));
        }
        Ok(moves.len())
    }

    /// True if the next token after the first `length` of a slot would see, or be written to, a page that was given back.
    fn misses(&self, slot: usize, length: usize) -> bool {
        let Ok(pages) = self.ledger.pages(slot) else { return false };
        let is_gone = |key: usize| pages[..length.div_ceil(self.page_size)].get(key / self.page_size) == Some(&PageTable::UNUSED);
        (0..=length).any(|key| self.kept.sees(length, key) && is_gone(key))
    }

    /// Checks that each page is free or in a sequence, lengths, and that each next row finds its keys.
    fn check(&self) {
        let mut used = Vec::new();
        for slot in 0..self.size.slots {
            let tokens = self.sequences[slot].as_ref();
            assert_eq!(self.ledger.length(slot).ok(), tokens.map(Vec::len));
            let Some(tokens) = tokens else { continue };
            assert_eq!(self.state[slot] as usize, tokens.len());
            let pages = self.ledger.pages(slot).expect("a sequence");
            assert_eq!(pages.len(), tokens.len().div_ceil(self.page_size));
            used.extend(pages.iter().copied().filter(|&page| page != PageTable::UNUSED));
            (0..tokens.len()).filter(|&key| self.kept.sees(tokens.len(), key)).for_each(|key| self.holds(slot, key));
        }
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len() + self.ledger.pool().free_pages(), self.ledger.pool().pages(), "a page is lost or owned twice");
    }
}

/// A window of 1,024 needs ceil(1024 / page_size) + 2 pages, and those of the first tokens, however far a sequence grows
/// and however many steps are extended at once: the pool has no more.
#[test]
fn a_window_holds_few_pages_over_131072_tokens() {
    for page_size in [1, 4, 16, 64] {
        for (first, tokens, steps) in [(0, 1, 1), (0, 1, 3), (40, 1, 100), (4, 3, 1)] {
            let kept = Kept { left: 1023, first };
            let bound = 1024usize.div_ceil(page_size) + 2 + (first as usize).div_ceil(page_size);
            let size = CacheSize { slots: 1, pages_per_slot: 131_072 / page_size };
            let mut model = Model::new(kept, size, page_size, bound);
            assert_eq!(model.ledger.start(), Ok(0));
            (model.sequences[0], model.tokens) = (Some(Vec::new()), 0);
            let mut most = 0;
            while model.tokens + (tokens * steps) as u64 <= 131_072 {
                model.extend(&[tokens], steps, false).unwrap_or_else(|why| panic!("{kept:?}, pages of {page_size}: {why}"));
                most = most.max(bound - model.ledger.pool().free_pages());
            }
            model.check();
            assert!(model.tokens > 130_900 && most + 2 >= bound - 1, "{most} of {bound} pages were used after {} tokens", model.tokens);
        }
    }
}

/// Random sequences: started, forked, freed, truncated, extended by several steps, with few pages.
#[test]
fn random_sequences_with_windows() {
    let (mut copied, mut moved, mut limits, mut refused, mut given) = (0, 0, 0, 0, 0);
    for seed in 0..300 {
        let mut rng = Rng::with_seed(seed);
        let kept = Kept { left: rng.u32(0..14), first: [0, rng.u32(0..9)][rng.usize(..2)] };
        let (page_size, size) = ([1, 2, 4, 7][rng.usize(..4)], CacheSize { slots: 4, pages_per_slot: 40 });
        let mut model = Model::new(kept, size, page_size, rng.usize(6..30));
        for _ in 0..300 {
            let slot = rng.usize(0..4);
            let length = model.ledger.length(slot).unwrap_or(0);
            let before = format!("{:?}", model.ledger);
            let amount = rng.usize(length.saturating_sub(12)..length + 2);
            let done = match rng.u32(0..12) {
                0 => model.ledger.start().map(|slot| model.sequences[slot] = Some(Vec::new())),
                1 | 2 => {
                    let misses = model.misses(slot, amount.min(length));
                    let done = model.ledger.fork(slot, amount);
                    assert!(!(misses && done.is_ok()), "a fork of {amount} misses pages");
                    let is_full = model.sequences.iter().all(Option::is_some);
                    assert!(done.is_ok() || misses || amount > length || is_full || model.sequences[slot].is_none());
                    done.map(|to| model.sequences[to] = model.sequences[slot].as_ref().map(|tokens| tokens[..amount].to_vec()))
                }
                3 => model.ledger.free(slot).map(|_| model.sequences[slot] = None),
                4 => {
                    let misses = model.misses(slot, amount.min(length));
                    let done = model.ledger.truncate(slot, amount);
                    assert_eq!(done.is_ok(), model.sequences[slot].is_some() && amount <= length && !misses, "{amount} of {length}");
                    refused += usize::from(misses);
                    done.map(|_| model.sequences[slot].as_mut().expect("it is there").truncate(amount))
                }
                5 | 6 => {
                    let last = [amount, (slot + 1) % 4].map(|n| n.min(12));
                    let rows = last.map(|last| (0..last).filter(|_| rng.bool()).collect::<Vec<usize>>());
                    let slots = [slot, (slot + 1) % 4];
                    let kept = [0, 1].map(|n| KeptRows { slot: slots[n], last: last[n], rows: &rows[n] });
                    model.keep(&kept[..rng.usize(1..=2)]).map(|moves| moved += moves)
                }
                _ => {
                    let tokens: Vec<usize> =
                        (0..4).map(|slot| if model.ledger.length(slot).is_ok() { rng.usize(0..4) } else { 0 }).collect();
                    model.extend(&tokens, [0, 1, 1, 2, 9][rng.usize(..5)], true).map(|copies| copied += copies)
                }
            };
            if let Err(error) = done {
                limits += usize::from(matches!(error, Error::Limit { limit: "pages of the pool", .. }));
                assert_eq!(format!("{:?}", model.ledger), before, "{error} has changed something");
            }
            model.write();
            model.check();
            given += (0..4).filter(|&slot| model.ledger.pages(slot).is_ok_and(|pages| pages.contains(&PageTable::UNUSED))).count();
        }
    }
    println!(
        "{copied} copies, {moved} tokens moved, {limits} times too few pages, {refused} truncations refused, {given} sequences with pages given back"
    );
    assert!(copied > 500 && moved > 500 && limits > 500 && refused > 500 && given > 10_000);
}

/// Forks and truncations find what their next token sees, or are refused with what would be possible.
#[test]
fn forks_and_truncations_need_their_window() {
    let mut pool = PagePool::windowed(4, 20, 5, 6).expect("valid");
    let id = pool.start();
    (0..30).for_each(|_| assert_eq!(pool.append(id, 1).expect("room").slots.len(), 1));
    // The last token was at 29: tokens from 24 on are kept, and the pages of tokens 0 to 7.
    let none = PageTable::UNUSED;
    let pages = pool.pages_of(id).expect("there").to_vec();
    assert_eq!(pages.iter().map(|&page| page == none).collect::<Vec<_>>(), [false, false, true, true, true, true, false, false]);
    assert_eq!(pool.free_pages(), 16);
    for length in 0..=30 {
        let is_there = length <= 8 || length >= 29;
        for result in [pool.fork(id, length).map(|fork| pool.free(fork)), pool.clone().truncate(id, length).map(Ok)] {
            match result {
                Ok(freed) => assert!(is_there && freed.is_ok(), "{length}"),
                Err(Error::Invalid { argument: "prefix" | "length", why }) => {
                    assert!(!is_there && why.contains("at least 29 tokens, or at most 8"), "{length}: {why}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    // A step of several tokens can be taken back, as after wrong speculation.
    for rejected in 0..=6 {
        pool.append(id, 6).expect("room");
        let length = pool.length(id).expect("there");
        pool.truncate(id, length - rejected).expect("the last step");
    }
    let fork = pool.fork(id, pool.length(id).expect("there")).expect("all of it");
    pool.append(fork, 20).expect("room");
    // The first sequence still has what the fork gave back.
    assert_eq!(pool.pages_of(id).expect("there").iter().filter(|&&page| page != none).count(), 4);
    pool.free(id).expect("there");
    pool.free(fork).expect("there");
    assert_eq!(pool.free_pages(), 20);
}

fn argument<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    match result {
        Err(Error::Invalid { argument, .. }) => argument,
        other => panic!("{other:?}"),
    }
}

/// Nobody attends to what is gone.
#[test]
fn problems_that_see_more_are_refused() {
    let queries = Queries { num_heads: 1, seq_len: 1 };
    for first in [0, 3] {
        let kept = Kept { left: 7, first };
        let shape = kept.shape(CacheShape::uniform(1, LayerShape::new(1, 4)).page_size(4).pages(5));
        let size = CacheSize { slots: 1, pages_per_slot: 8 };
        let plan = CachePlan::new(shape.clone(), size, &DeviceCaps::webgpu_defaults()).expect("a cache");
        let own = plan.problem(0, 0..1, queries).expect("a layer");
        let attend = |problem: Problem| plan.attention(0, &problem, 0..1, Algorithm::Auto).map(|_| ());
        assert_eq!([attend(own.clone()), attend(own.clone().causal())], [Ok(()), Ok(())]);
        assert_eq!(attend(own.clone().window(Some(2), None)), Ok(()), "less");
        assert_eq!(argument(attend(own.clone().aligned(Alignment::TopLeft))), "alignment");
        let all = Problem { user_terms: vec![], ..own.clone() };
        assert_eq!(argument(attend(all.clone().window(Some(8), None))), "window_left");
        assert_eq!(argument(attend(all.clone().window(None, None))), "window_left");

        let mut cache = KvCache::new(shape).expect("a cache");
        let id = cache.pool_mut().start();
        for _ in 0..5 {
            cache.extend(id, 4).expect("room");
            cache.append(0, id, (&[1.0; 16]).into(), (&[1.0; 16]).into()).expect("the last tokens");
        }
        assert_eq!(argument(cache.append(0, id, (&[1.0; 80]).into(), (&[1.0; 80]).into())), "key");
        let table = cache.pool().table(&[id]).expect("there");
        assert!(table.entries.contains(&PageTable::UNUSED));
        let own = cache.problem(0, &table, queries).expect("a layer");
        let attend = |problem: &Problem| {
            let (key, value) = (cache.key(0).expect("a layer"), cache.value(0).expect("a layer"));
            let inputs = Inputs { kv_lengths: &table.kv_lengths, page_table: &table.entries, ..Inputs::new(&[1.0f32; 4], key, value) };
            (cpu().attend)(problem, &inputs).map(|outputs| outputs.output.to_f32())
        };
        assert_eq!(attend(&own), Ok(vec![1.0; 4]));
        assert_eq!(argument(attend(&own.clone().aligned(Alignment::TopLeft))), "page_table");
        let all = Problem { user_terms: vec![], ..own.clone() };
        assert_eq!(argument(attend(&all.window(None, None))), "page_table");
        let mut raw = own.clone();
        raw.want.scores = Some(ScoreStage::Raw);
        assert_eq!(argument(attend(&raw)), "page_table");
        let many = cache.problem(0, &table, Queries { seq_len: 14, ..queries }).expect("a layer");
        let inputs = Inputs {
            kv_lengths: &table.kv_lengths,
            page_table: &table.entries,
            ..Inputs::new(&[1.0f32; 56], cache.key(0).expect("a layer"), cache.value(0).expect("a layer"))
        };
        assert_eq!(argument((cpu().attend)(&many, &inputs)), "page_table", "rows of old tokens");
    }
    let shape = CacheShape::uniform(1, LayerShape::new(1, 4)).pages(5).keep_first(2);
    assert_eq!(argument(KvCache::new(shape)), "first_tokens");
}

const CASES: [(usize, Kept); 5] = [
    (1, Kept { left: 9, first: 0 }),
    (4, Kept { left: 17, first: 5 }),
    (4, Kept { left: 0, first: 0 }),
    (16, Kept { left: 30, first: 3 }),
    (64, Kept { left: 20, first: 0 }),
];

/// Computes the same numbers as a cache that keeps everything, on the CPU, and the oracle's.
#[test]
fn host_caches_with_windows_compute_the_same() {
    let backend = cpu();
    for (page_size, kept) in CASES {
        let layer = LayerShape::new(2, 8).head_dim_v(5);
        let shape = CacheShape::uniform(1, layer).page_size(page_size).layout(Layout::Bshd);
        let few = 2 * ((kept.left as usize + 3).div_ceil(page_size) + 1 + (kept.first as usize).div_ceil(page_size));
        let mut caches = [shape.clone().pages(600), kept.shape(shape).pages(few)].map(|shape| KvCache::new(shape).expect("a cache"));
        let ids = caches.each_mut().map(|cache| [cache.pool_mut().start(), cache.pool_mut().start()]);
        for step in 0..100 {
            let tokens = [1 + step % 3, 1 + usize::from(step % 7 == 0)];
            let rows = tokens[1].min(tokens[0]);
            let outputs = [0, 1].map(|which| {
                let (cache, ids) = (&mut caches[which], ids[which]);
                for (n, (&id, tokens)) in ids.iter().zip(tokens).enumerate() {
                    cache.extend(id, tokens).expect("room");
                    let (key, value) = (draw(8 * step + n, tokens * 16), draw(8 * step + n + 4, tokens * 10));
                    cache.append(0, id, (&key).into(), (&value).into()).expect("room");
                }
                let table = cache.pool().table(&ids).expect("there");
                let problem = cache.problem(0, &table, Queries { num_heads: 4, seq_len: rows }).expect("a layer");
                let problem = if which == 0 { kept.mask(problem) } else { problem.causal() };
                let query = draw(step, problem.query_len());
                let inputs = Inputs {
                    kv_lengths: &table.kv_lengths,
                    page_table: &table.entries,
                    ..Inputs::new(&query, cache.key(0).expect("a layer"), cache.value(0).expect("a layer"))
                };
                let output = (backend.attend)(&problem, &inputs).expect("valid").output.to_f32();
                agree(&format!("{kept:?}, step {step}"), &output, &Expected::of(&problem, &inputs).expect("valid").output);
                output.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            });
            assert_eq!(outputs[0], outputs[1], "{kept:?}, pages of {page_size}, step {step}");
        }
        assert!(ids[1].iter().any(|&id| caches[1].pool().pages_of(id).expect("there").contains(&PageTable::UNUSED)));
    }
}

/// Computes the same bits as a cache that keeps everything, on devices: steps bound once and recorded again while pages are
/// given back, several in one submission, with forks and truncations.
#[test]
fn device_caches_with_windows_compute_the_same() {
    for gpu in gpus() {
        for (case, (page_size, kept)) in CASES.into_iter().enumerate() {
            let layers = vec![LayerShape::new(2, 32), LayerShape::new(1, 64).head_dim_v(32)];
            let shape = CacheShape::new(layers).page_size(page_size);
            let size = CacheSize { slots: 2, pages_per_slot: 256usize.div_ceil(page_size) };
            let queries = Queries { num_heads: 2, seq_len: 1 + case % 2 };
            let few = 2 * ((kept.left as usize + queries.seq_len).div_ceil(page_size) + 2 + (kept.first as usize).div_ceil(page_size));
            let shapes = [shape.clone().pages(2 * size.pages_per_slot), kept.shape(shape).pages(few)];
            let mut caches = shapes.map(|shape| DeviceCache::new(&gpu, shape, size).expect("a cache"));
            let stacks = [0, 1].map(|which| {
                let look = |problem: Problem| if which == 0 { kept.mask(problem) } else { problem.causal() };
                Stack::new(&gpu, &caches[which], queries, look, (&[], None), None)
            });
            caches.iter_mut().for_each(|cache| assert_eq!(cache.start(), Ok(0)));
            let rows = queries.seq_len;
            let (mut submissions, mut rng) = (0, Rng::with_seed(case as u64));
            while caches[1].length(0).expect("a sequence") + 9 * rows < 256 {
                let steps = [1, 1, 2, 3, 7][rng.usize(..5)];
                let outputs = [0, 1].map(|which| {
                    let (cache, stack) = (&mut caches[which], &stacks[which]);
                    match submissions {
                        5 => assert_eq!(cache.fork(0, cache.length(0).expect("a sequence")), Ok(1)),
                        20 => drop(cache.free(1).expect("a sequence")),
                        12 | 13 => {
                            // A token of the last step is taken back.
                            let length = cache.length(1).expect("a sequence");
                            cache.truncate(1, length - usize::from(rows > 1)).expect("the last step");
                        }
                        _ => {}
                    }
                    for (n, layer) in stack.layers.iter().enumerate() {
                        for (side, buffer) in [&layer.query, &layer.key, &layer.value].into_iter().enumerate() {
                            let data = draw(100 * submissions + 10 * n + side, buffer.size() as usize / 4);
                            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&data));
                        }
                    }
                    let tokens = [rows, if cache.length(1).is_ok() { rows } else { 0 }];
                    let mut encoder = gpu.device().create_command_encoder(&Default::default());
                    cache.extend(Growth { tokens: &tokens, steps }, &mut encoder).expect("room");
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    (0..steps).for_each(|_| stack.record(cache, &mut pass));
                    drop(pass);
                    gpu.queue().submit([encoder.finish()]);
                    let outputs = stack.layers.iter().flat_map(|layer| read(gpu.device(), gpu.queue(), &layer.output));
                    outputs.map(f32::to_bits).collect::<Vec<_>>()
                });
                assert_eq!(outputs[0], outputs[1], "{}, {kept:?}, pages of {page_size}, submission {submissions}", gpu.name());
                submissions += 1;
            }
            assert!(submissions > 20 && caches[1].pages(0).expect("a sequence").contains(&PageTable::UNUSED));
        }
    }
}
