//! Paged caches compared with naive caches of one sequence each, and the merging of partial results.

use std::collections::BTreeMap;

use crate::common::{STORAGE, Tested, agree, cpu, gpus};
use fastrand::Rng;
use wgpu_attention::cache::{CacheShape, KvCache, LayerShape, PagePool, Queries, SequenceId};
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::verify::{Expected, oracle};
use wgpu_attention::{
    Alignment, AttentionFn, DType, Dims, Error, Hadamard, HostVec, Inputs, Layout, Outputs, PageTable, Paged, Part, Problem, RowSums,
    Table, TensorSpec, Term, merge,
};

/// Expected keys and values of each layer of each sequence, [tokens, num_kv_heads, dim], rotated and rounded as they are stored.
type Naive = BTreeMap<SequenceId, [[Vec<f32>; 2]; 2]>;

/// Paged cache of two different layers and a naive copy, driven by random operations.
struct Schedule {
    rng: Rng,
    cache: KvCache,
    naive: Naive,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut layer = || {
            let mut side = |plain: &[usize]| {
                let dtype = STORAGE[rng.usize(..5)];
                (dtype, if dtype.is_quantised() { [32, 64][rng.usize(..2)] } else { plain[rng.usize(..plain.len())] })
            };
            let ((key, head_dim), (value, head_dim_v)) = (side(&[4, 5, 16]), side(&[3, 8]));
            let rotates = |width: usize| Hadamard::of(width).is_some();
            let layer = LayerShape::new(rng.usize(1..=2), head_dim).head_dim_v(head_dim_v).stored(key, value);
            layer.hadamard(rotates(head_dim) && rng.bool(), rotates(head_dim_v) && rng.bool())
        };
        let layers = vec![layer(), layer()];
        let (page_size, pages) = ([1, 2, 4, 7, 16][rng.usize(..5)], rng.usize(0..12));
        let layout = [Layout::Bshd, Layout::Bhsd][rng.usize(..2)];
        let shape = CacheShape::new(layers).page_size(page_size).pages(pages).layout(layout);
        let mut cache = KvCache::new(shape).expect("a valid shape");
        poison(&mut cache, 0..pages as u32);
        Self { rng, cache, naive: Naive::new() }
    }

    fn any(&mut self) -> Option<SequenceId> {
        let ids: Vec<_> = self.naive.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.rng.usize(..ids.len())])
    }

    fn step(&mut self, attend: &AttentionFn<'_>) {
        match (self.rng.u8(..16), self.any()) {
            (0 | 1, _) | (_, None) => {
                let id = self.cache.pool_mut().start();
                self.naive.insert(id, Default::default());
            }
            (2..7, Some(id)) => self.append(id),
            (7, Some(id)) => self.keep(id),
            (8 | 9, Some(id)) => {
                let prefix = self.rng.usize(0..=self.cache.pool().length(id).expect("it is there"));
                let fork = self.cache.pool_mut().fork(id, prefix).expect("the prefix is there");
                let mut data = self.naive[&id].clone();
                for (layer, [key, value]) in self.cache.shape().layers.iter().zip(&mut data) {
                    key.truncate(prefix * layer.num_kv_heads * layer.head_dim);
                    value.truncate(prefix * layer.num_kv_heads * layer.head_dim_v);
                }
                self.naive.insert(fork, data);
            }
            (10 | 11, Some(id)) => {
                let freed = self.cache.pool_mut().free(id).expect("it is there");
                self.naive.remove(&id);
                poison(&mut self.cache, freed);
                assert!(self.cache.pool().length(id).is_err() && self.cache.pool_mut().free(id).is_err());
            }
            (12, Some(_)) => {
                let pages = self.cache.pool().pages() as u32;
                let more = self.rng.u32(0..4);
                self.cache.grow(more as usize).expect("a few more");
                poison(&mut self.cache, pages..pages + more);
            }
            (_, Some(_)) => self.attend(attend),
        }
    }

    fn append(&mut self, id: SequenceId) {
        let tokens = [0, 1, 1, self.rng.usize(0..20)][self.rng.usize(..4)];
        let free = self.cache.pool().free_pages();
        match self.cache.extend(id, tokens) {
            Ok(()) => {}
            Err(Error::Limit { needed, available, .. }) => {
                assert!(available == free as u64 && needed > available);
                assert_eq!(self.cache.pool().free_pages(), free);
                return;
            }
            Err(other) => panic!("{other}"),
        }
        for (layer, [all_keys, all_values]) in self.naive.get_mut(&id).expect("it is there").iter_mut().enumerate() {
            let shape = self.cache.shape().layers[layer];
            let mut some = |dim: usize, dtype: DType| {
                let numbers: Vec<f32> = (0..tokens * shape.num_kv_heads * dim).map(|_| self.rng.f32() * 4.0 - 2.0).collect();
                HostVec::from_f32(dtype, &numbers)
            };
            let (key, value) = (some(shape.head_dim, shape.key), some(shape.head_dim_v, shape.value));
            self.cache.append(layer, id, key.as_slice(), value.as_slice()).expect("there is room");
            let stored = |rows: &HostVec, dim: usize, is_rotated: bool| {
                let mut numbers = rows.to_f32();
                if is_rotated {
                    Hadamard::of(dim).expect("whole blocks").rotate(&mut numbers);
                }
                HostVec::from_f32(rows.as_slice().dtype(), &numbers).to_f32()
            };
            all_keys.extend(stored(&key, shape.head_dim, shape.key_hadamard));
            all_values.extend(stored(&value, shape.head_dim_v, shape.value_hadamard));
        }
    }

    /// Keeps some of the last tokens; pages that a fork shares are copied.
    fn keep(&mut self, id: SequenceId) {
        let length = self.cache.pool().length(id).expect("it is there");
        let last = self.rng.usize(0..=length.min(12));
        let rows: Vec<usize> = (0..last).filter(|_| self.rng.bool()).collect();
        let before = self.cache.pool().clone();
        let wrong = [[&rows[..], &[last]].concat(), [&[last.saturating_sub(1)], &rows[..]].concat(), vec![last + 1]];
        for rows in wrong.iter().filter(|rows| rows.len() > 1 || rows[0] >= last) {
            assert!(matches!(self.cache.keep(id, last, rows), Err(Error::Invalid { argument: "rows", .. })), "{rows:?} of {last}");
        }
        assert!(matches!(self.cache.keep(id, length + 1, &[]), Err(Error::Invalid { argument: "last", .. })));
        match self.cache.keep(id, last, &rows) {
            Ok(freed) => poison(&mut self.cache, freed),
            Err(Error::Limit { limit: "pages of the pool", needed, available, .. }) => {
                assert!(available == before.free_pages() as u64 && needed > available && *self.cache.pool() == before);
                return;
            }
            Err(other) => panic!("{other}"),
        }
        let base = length - last;
        for (layer, sides) in self.cache.shape().layers.iter().zip(self.naive.get_mut(&id).expect("it is there")) {
            for (rows_of, dim) in sides.iter_mut().zip([layer.head_dim, layer.head_dim_v]) {
                let width = layer.num_kv_heads * dim;
                let kept = rows.iter().flat_map(|row| &rows_of[(base + row) * width..][..width]).copied().collect::<Vec<f32>>();
                rows_of.truncate(base * width);
                rows_of.extend(kept);
            }
        }
    }

    /// Computes attention to some sequences at once, paged, and compares each with the oracle on its dense copy.
    fn attend(&mut self, attend: &AttentionFn<'_>) {
        let batch: Vec<SequenceId> = (0..self.rng.usize(1..4)).filter_map(|_| self.any()).collect();
        let table = self.cache.pool().table(&batch).expect("they are there");
        let (layer, group, rows) = (self.rng.usize(..2), self.rng.usize(1..3), self.rng.usize(1..4));
        let shape = self.cache.shape().layers[layer];
        let heads = group * shape.num_kv_heads;
        let problem = self.cache.problem(layer, &table, Queries { num_heads: heads, seq_len: rows }).expect("a layer");
        let problem = problem.aligned(Alignment::BottomRight).causal().with_lse();
        // Every third problem has a user's term, which must see the same pairs in pages as without them.
        let term = (self.rng.u8(..3) == 0).then(|| term(heads));
        let rates: Vec<u32> = (0..if term.is_some() { heads } else { 0 }).map(|_| (self.rng.f32() * 2.0).to_bits()).collect();
        let problem = Problem { user_terms: term.into_iter().collect(), ..problem };
        let query: Vec<f32> = (0..problem.query_len()).map(|_| self.rng.f32() * 2.0 - 1.0).collect();
        let inputs = Inputs {
            kv_lengths: &table.kv_lengths,
            page_table: &table.entries,
            term_tables: &rates,
            ..Inputs::new(&query, self.cache.key(layer).expect("a layer"), self.cache.value(layer).expect("a layer"))
        };
        let got = attend(&problem, &inputs).expect("a valid problem");
        let (output, lse) = (got.output.to_f32(), got.lse.expect("asked for"));
        for (b, id) in batch.iter().enumerate() {
            let [key, value] = &self.naive[id][layer];
            let length = key.len() / (shape.num_kv_heads * shape.head_dim);
            assert_eq!(length, self.cache.pool().length(*id).expect("it is there"));
            let dims = Dims { batch: 1, seq_len_kv: length, ..problem.dims };
            let mut dense = Problem::new(dims).aligned(Alignment::BottomRight).causal().with_lse();
            dense = dense.hadamard(shape.key_hadamard, shape.value_hadamard);
            (dense.key.layout, dense.value.layout) = (Layout::Bshd, Layout::Bshd);
            dense.user_terms.clone_from(&problem.user_terms);
            let item = heads * rows * shape.head_dim;
            let inputs = Inputs { term_tables: &rates, ..Inputs::new(&query[b * item..][..item], &key[..], &value[..]) };
            let expected = Expected::of(&dense, &inputs).expect("a valid problem");
            let of = |all: &[f32], expected: &wgpu_attention::verify::ExpectedTensor| {
                let got = &all[b * expected.values.len()..][..expected.values.len()];
                agree(&format!("item {b}"), got, expected);
            };
            of(&output, &expected.output);
            of(&lse, &expected.lse.expect("asked for"));
        }
    }
}

/// A user's term that reads every field of a pair but the batch, and a table by head.
fn term(heads: usize) -> Term {
    let text = "
        fn visible(at: Pair) -> bool { return (at.position - at.key) % 5 != 3 || at.key_position == at.row; }
        fn score(x: f32, at: Pair) -> f32 {
            return x * rates[at.head] + f32(at.kv_head) - 0.1 * f32(at.len_kv - at.key) / f32(at.len_q);
        }";
    Term::with_tables(text, &[Table::f32("rates", heads)]).expect("valid")
}

/// Fills pages with NaN, so that a read of a page that belongs to no sequence shows.
fn poison(cache: &mut KvCache, pages: impl IntoIterator<Item = u32> + Clone) {
    for (number, layer) in cache.shape().layers.clone().into_iter().enumerate() {
        let page_size = cache.shape().page_size;
        for (data, dim) in cache.data_mut(number).expect("a layer").iter_mut().zip([layer.head_dim, layer.head_dim_v]) {
            for page in pages.clone() {
                let len = page_size * layer.num_kv_heads * dim;
                let range = page as usize * len..(page as usize + 1) * len;
                match data {
                    HostVec::F32(data) => data[range].fill(f32::NAN),
                    HostVec::F16(data) => data[range].fill(wgpu_attention::f16::NAN),
                    HostVec::BF16(data) => data[range].fill(wgpu_attention::bf16::NAN),
                    // A block with all bits set has the scale NaN.
                    HostVec::Q8(words) => words[range.start / 32 * 9..range.end / 32 * 9].fill(u32::MAX),
                    HostVec::Q4(words) => words[range.start / 32 * 5..range.end / 32 * 5].fill(u32::MAX),
                }
            }
        }
    }
}

fn run(backend: &Tested, count: u64, steps: usize) {
    for seed in 0..count {
        let mut schedule = Schedule::new(seed);
        (0..steps).for_each(|_| schedule.step(&*backend.attend));
        let ids: Vec<_> = schedule.naive.keys().copied().collect();
        ids.into_iter().for_each(|id| {
            schedule.cache.pool_mut().free(id).expect("it is there");
        });
        assert_eq!(schedule.cache.pool().free_pages(), schedule.cache.pool().pages(), "schedule {seed} lost pages");
    }
}

#[test]
fn random_schedules_on_the_cpu() {
    run(&cpu(), 150, 150);
}

#[test]
fn random_schedules_on_gpus() {
    for gpu in gpus(ShaderOptions::default()) {
        run(&gpu, 3, 40);
    }
}

#[test]
fn a_shared_last_page_is_copied_before_it_is_written() {
    let mut pool = PagePool::new(4, 4).expect("a valid pool");
    let first = pool.start();
    assert_eq!(pool.append(first, 6).expect("room").slots.len(), 2);
    let second = pool.fork(first, 5).expect("a prefix");
    assert_eq!(pool.free_pages(), 2);
    let append = pool.append(second, 1).expect("room");
    let (copied, to) = append.copy.expect("the page is shared");
    assert_eq!((copied.page, copied.first, copied.count), (1, 0, 1));
    assert_eq!((append.slots[0].page, append.slots[0].first, append.slots[0].count), (to, 1, 1));
    // Only the first sequence has the page now.
    assert_eq!(pool.append(first, 2).expect("room").copy, None);
    // 2 pages are needed, 1 is free: nothing changes.
    assert!(matches!(pool.append(first, 5), Err(Error::Limit { needed: 2, available: 1, .. })));
    assert_eq!((pool.length(first), pool.length(second), pool.free_pages()), (Ok(8), Ok(6), 1));
    assert_eq!(pool.free(second).expect("there"), [to]);
    pool.append(first, 5).expect("room now");
    assert!(pool.fork(first, 14).is_err() && pool.fork(second, 0).is_err());
}

/// Sequences grow together or not at all.
#[test]
fn many_sequences_grow_at_once() {
    let mut cache = KvCache::new(CacheShape::uniform(1, LayerShape::new(1, 2)).page_size(4).pages(4)).expect("valid");
    let [first, second] = [0; 2].map(|_| cache.pool_mut().start());
    cache.extend_all(&[(first, 6), (second, 1)]).expect("three pages");
    cache.append(0, first, (&[1.0; 12]).into(), (&[2.0; 12]).into()).expect("its tokens");
    let fork = cache.pool_mut().fork(first, 5).expect("a prefix");
    let before = cache.pool().clone();
    // The fork copies a page, and the second sequence needs another.
    let refused = cache.extend_all(&[(fork, 1), (first, 0), (second, 4)]);
    assert!(matches!(refused, Err(Error::Limit { limit: "pages of the pool", needed: 2, available: 1, .. })), "{refused:?}");
    assert!(matches!(cache.extend_all(&[(first, 1), (second, 1), (first, 1)]), Err(Error::Invalid { argument: "sequence", .. })));
    assert_eq!(*cache.pool(), before, "a refusal changes nothing");
    cache.extend_all(&[(fork, 3), (first, 0), (second, 3)]).expect("one page");
    assert_eq!([fork, first, second].map(|id| cache.pool().length(id)), [Ok(8), Ok(6), Ok(4)]);
    let page = cache.pool().pages_of(fork).expect("there")[1] as usize;
    assert_eq!(cache.key(0).map(|key| key.get(8 * page)), Ok(1.0), "its prefix is copied");
}

#[test]
fn page_indices_make_the_same_table() {
    let table = PageTable::from_indices(4, &[0, 2, 2, 3], &[5, 1, 0], &[3, 0, 4]).expect("a valid table");
    let none = PageTable::UNUSED;
    assert_eq!(table.entries, [5, 1, none, none, 0, none]);
    assert_eq!(table.kv_lengths, [7, 0, 4]);
    for (indptr, last) in [(&[0, 2, 1, 3][..], &[3, 1, 4]), (&[0, 2, 2, 9], &[3, 1, 4]), (&[0, 2, 2, 3], &[3, 1, 5]), (&[0, 3], &[3, 1, 4])]
    {
        assert!(PageTable::from_indices(4, indptr, &[5, 1, 0], last).is_err(), "{indptr:?} {last:?}");
    }
    assert!(PageTable::from_indices(0, &[0], &[], &[]).is_err());
}

#[test]
fn bad_tables_are_refused() {
    let dims = Dims { batch: 2, seq_len_q: 1, ..Dims::self_attention(2, 1, 6, 4) };
    let mut problem = Problem::new(dims);
    problem.paged = Some(Paged { page_size: 4, pages: 3, pages_per_item: 2 });
    problem.visibility.kv_lengths = true;
    let pool = [0.0f32; 3 * 4 * 4];
    let query = [0.0f32; 8];
    let with = |problem: &Problem, kv_lengths: &[u32], page_table: &[u32]| {
        oracle(problem, &Inputs { kv_lengths, page_table, ..Inputs::new(&query[..], &pool[..], &pool[..]) }).map(|_| ())
    };
    let argument = |result: Result<(), Error>| match result {
        Err(Error::Invalid { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    with(&problem, &[6, 2], &[2, 0, 1, u32::MAX]).expect("a valid table");
    assert_eq!(argument(with(&problem, &[6, 2], &[2, 3, 1, 0])), "page_table");
    assert_eq!(argument(with(&problem, &[6, 5], &[2, 0, 1, u32::MAX])), "page_table");
    assert_eq!(argument(with(&problem, &[6, 2], &[2, 0, 1])), "page_table");
    assert_eq!(argument(with(&problem, &[7, 2], &[2, 0, 1, 1])), "kv_lengths");
    let changed = |change: fn(&mut Problem)| {
        let mut problem = problem.clone();
        change(&mut problem);
        argument(problem.check())
    };
    assert_eq!(changed(|p| p.dims.seq_len_kv = 9), "seq_len_kv");
    assert_eq!(changed(|p| p.visibility.kv_lengths = false), "kv_lengths");
    assert_eq!(changed(|p| p.paged = Some(Paged { page_size: 0, pages: 1, pages_per_item: 9 })), "page_size");
    assert_eq!(changed(|p| p.varlen = Some(wgpu_attention::Varlen { tokens_q: 2, tokens_kv: 6 })), "tokens_kv");
    let shape = CacheShape::uniform(1, LayerShape::new(1, 4)).page_size(2).pages(3);
    assert!(KvCache::new(shape.clone().layout(Layout::Strided(TensorSpec::default().strides([1; 4])))).is_err());
    let mut cache = KvCache::new(shape).expect("valid");
    let id = cache.pool_mut().start();
    let (three, four) = ([0.0f32; 3], [0.0f32; 4]);
    assert_eq!(argument(cache.append(0, id, (&four).into(), (&four).into())), "key", "it has no token yet");
    cache.extend(id, 3).expect("room");
    assert_eq!(argument(cache.append(0, id, (&three).into(), (&four).into())), "key");
    assert_eq!(argument(cache.append(0, id, (&four).into(), (&three).into())), "value");
    assert_eq!(argument(cache.append(1, id, (&four).into(), (&four).into())), "layer");
    // The fork copies the second page, and shares the first.
    let fork = cache.pool_mut().fork(id, 3).expect("a prefix");
    cache.extend(fork, 1).expect("room");
    cache.append(0, fork, (&[1.0; 8]).into(), (&[1.0; 8]).into()).expect("a page of its own");
    assert_eq!(argument(cache.append(0, fork, (&[1.0; 12]).into(), (&[1.0; 12]).into())), "key");
    assert_eq!(cache.key(0).map(|key| key.get(8)), Ok(0.0), "the first sequence is unchanged");
}

/// Merges parts into the whole for any split of the keys, with scores in the hundreds and with empty parts, by lse or by
/// statistics.
#[test]
fn merged_parts_are_the_whole() {
    let mut rng = Rng::with_seed(7);
    for round in 0..200 {
        let keys = rng.usize(1..40);
        let dims = Dims { seq_len_q: 3, ..Dims::self_attention(1, 2, keys, 4) };
        let problem = Problem::new(dims).with_lse().with_stats();
        let spread = [1.0, 30.0, 1000.0][round % 3];
        let mut some = |len: usize, spread: f32| (0..len).map(|_| (rng.f32() * 2.0 - 1.0) * spread).collect::<Vec<f32>>();
        let (query, key, value) = (some(24, 1.0), some(8 * keys, spread), some(8 * keys, 1.0));
        let expected = Expected::of(&problem, &Inputs::new(&query, &key, &value)).expect("valid");
        // Each key goes to a random part; some parts may be empty.
        let parts = rng.usize(1..7);
        let part_of: Vec<usize> = (0..keys).map(|_| rng.usize(..parts)).collect();
        let mut outputs: Vec<Outputs> = (0..parts)
            .map(|part| {
                let mask: Vec<bool> = part_of.iter().map(|&of| of == part).collect();
                let mut masked = problem.clone();
                masked.visibility.mask = Some(wgpu_attention::BroadcastShape([1, 1, 1, keys]));
                let mut got = oracle(&masked, &Inputs { mask: &mask, ..Inputs::new(&query, &key, &value) }).expect("valid");
                if !part_of.contains(&part) {
                    got.output = vec![f32::NAN; problem.output_len()].into(); // the output of an empty part is unspecified
                }
                got
            })
            .collect();
        rng.shuffle(&mut outputs);
        let rows: Vec<Vec<f32>> = outputs.iter().map(|part| part.output.to_f32()).collect();
        let parts = outputs.iter().zip(&rows).map(|(part, output)| {
            let by_lse = RowSums::Lse(part.lse.as_deref().expect("asked for"));
            let by_stats = RowSums::Stats(part.stats.as_deref().expect("asked for"));
            Part { output, sums: [by_lse, by_stats][if round % 4 < 2 { round % 4 } else { rng.usize(..2) }] }
        });
        let merged = merge(&parts.collect::<Vec<_>>()).expect("equal sizes");
        assert!(merged.stats.iter().zip(&merged.lse).all(|([m, l], lse)| (m + l.ln() - lse).abs() <= 1e-6 * lse.abs().max(1.0)));
        for (got, expected) in [(merged.output, expected.output), (merged.lse, expected.lse.expect("asked for"))] {
            agree(&format!("round {round}"), &got, &expected);
        }
    }
}

#[test]
fn merging_edges() {
    fn part<'a>(output: &'a [f32], lse: &'a [f32]) -> Part<'a> {
        Part { output, sums: RowSums::Lse(lse) }
    }
    let nothing = part(&[f32::NAN; 2], &[f32::NEG_INFINITY]);
    let no_stats = Part { sums: RowSums::Stats(&[[f32::MIN, 0.0]]), ..nothing };
    let merged = merge(&[nothing, no_stats]).expect("equal sizes");
    assert_eq!((merged.output, merged.lse, merged.stats), (vec![0.0, 0.0], vec![f32::NEG_INFINITY], vec![[f32::MIN, 0.0]]));
    let one = part(&[1.0, -2.0], &[700.0]);
    let merged = merge(&[nothing, one, no_stats]).expect("equal sizes");
    assert_eq!((merged.output, merged.lse, merged.stats), (vec![1.0, -2.0], vec![700.0], vec![[700.0, 1.0]]));
    // A sink with an equal lse halves the output.
    let sink = part(&[0.0, 0.0], &[700.0]);
    assert_eq!(merge(&[one, sink]).expect("equal sizes").output, [0.5, -1.0]);
    for spoilt in [
        part(&[1.0, 1.0], &[f32::NAN]),
        part(&[1.0, 1.0], &[f32::INFINITY]),
        Part { output: &[1.0, 1.0], sums: RowSums::Stats(&[[f32::NAN, f32::NAN]]) },
        Part { output: &[1.0, 1.0], sums: RowSums::Stats(&[[3.0, f32::NAN]]) },
    ] {
        let merged = merge(&[one, spoilt]).expect("equal sizes");
        assert!(merged.output.iter().chain(&merged.lse).all(|x| x.is_nan()) && merged.stats[0][1].is_nan(), "{merged:?}");
    }
    // Around 2^25 an lse has no digits left for an l of 3, so its part counts as much as one with an l of 1.
    let large = 33_554_432.0f32;
    let (of_three, of_one) = ([large + 3.0f32.ln()], [large]);
    let by_lse = [part(&[1.0], &of_three), part(&[5.0], &of_one)];
    assert_eq!(merge(&by_lse).expect("equal sizes").output, [3.0]);
    let (three, one_l) = ([[large, 3.0]], [[large, 1.0]]);
    let by_stats = [Part { output: &[1.0], sums: RowSums::Stats(&three) }, Part { output: &[5.0], sums: RowSums::Stats(&one_l) }];
    let merged = merge(&by_stats).expect("equal sizes");
    assert_eq!((merged.output, merged.stats), (vec![2.0], vec![[large, 4.0]]));
    assert!(merge(&[]).is_err() && merge(&[one, part(&[1.0], &[0.0])]).is_err());
    assert!(merge(&[part(&[1.0; 3], &[0.0; 2])]).is_err());
    assert!(merge(&[part(&[], &[])]).expect("no rows").output.is_empty());
}
