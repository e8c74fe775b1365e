//! Paged caches compared with naive caches of one sequence each, and the merging of partial results.

use std::collections::BTreeMap;

use crate::common::{STORAGE, Tested, agree, cpu, gpus};
use fastrand::Rng;
use wgpu_attention::cache::{CacheShape, KvCache, PagePool, SequenceId};
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::verify::{Expected, oracle};
use wgpu_attention::{
    Alignment, AttentionFn, DType, Dims, Error, HostVec, Inputs, Layout, PageTable, Paged, Part, Problem, TensorSpec, merge,
};

/// Expected keys and values of each sequence, [tokens, num_kv_heads, dim], rounded to the storage type.
type Naive = BTreeMap<SequenceId, [Vec<f32>; 2]>;

/// Paged cache and a naive copy, driven by random operations.
struct Schedule {
    rng: Rng,
    shape: CacheShape,
    cache: KvCache,
    naive: Naive,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let dtype = STORAGE[rng.usize(..5)];
        let [head_dim, head_dim_v] =
            if dtype.is_quantised() { [[32, 64][rng.usize(..2)], 32] } else { [[4, 5, 16][rng.usize(..3)], [3, 8][rng.usize(..2)]] };
        let shape = CacheShape {
            page_size: [1, 2, 4, 7, 16][rng.usize(..5)],
            num_kv_heads: rng.usize(1..=2),
            head_dim,
            head_dim_v,
            dtype,
            layout: [Layout::Bshd, Layout::Bhsd][rng.usize(..2)],
        };
        let pages = rng.usize(0..12);
        let mut cache = KvCache::new(shape, pages).expect("a valid shape");
        poison(&mut cache, shape, 0..pages as u32);
        Self { rng, shape, cache, naive: Naive::new() }
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
            (2..8, Some(id)) => self.append(id),
            (8 | 9, Some(id)) => {
                let prefix = self.rng.usize(0..=self.cache.pool().length(id).expect("it is there"));
                let fork = self.cache.pool_mut().fork(id, prefix).expect("the prefix is there");
                let row = |dim: usize| prefix * self.shape.num_kv_heads * dim;
                let [key, value] = &self.naive[&id];
                let prefix = [key[..row(self.shape.head_dim)].to_vec(), value[..row(self.shape.head_dim_v)].to_vec()];
                self.naive.insert(fork, prefix);
            }
            (10 | 11, Some(id)) => {
                let freed = self.cache.pool_mut().free(id).expect("it is there");
                self.naive.remove(&id);
                poison(&mut self.cache, self.shape, freed);
                assert!(self.cache.pool().length(id).is_err() && self.cache.pool_mut().free(id).is_err());
            }
            (12, Some(_)) => {
                let pages = self.cache.pool().pages() as u32;
                let more = self.rng.u32(0..4);
                self.cache.grow(more as usize).expect("a few more");
                poison(&mut self.cache, self.shape, pages..pages + more);
            }
            (_, Some(_)) => self.attend(attend),
        }
    }

    fn append(&mut self, id: SequenceId) {
        let tokens = [0, 1, 1, self.rng.usize(0..20)][self.rng.usize(..4)];
        let mut some = |dim: usize| {
            let data: Vec<f32> = (0..tokens * self.shape.num_kv_heads * dim).map(|_| self.rng.f32() * 4.0 - 2.0).collect();
            HostVec::from_f32(self.shape.dtype, &data)
        };
        let (key, value) = (some(self.shape.head_dim), some(self.shape.head_dim_v));
        let free = self.cache.pool().free_pages();
        match self.cache.append(id, key.as_slice(), value.as_slice()) {
            Ok(()) => {
                let [all_keys, all_values] = self.naive.get_mut(&id).expect("it is there");
                all_keys.extend(key.to_f32());
                all_values.extend(value.to_f32());
            }
            Err(Error::Limit { needed, available, .. }) => {
                assert!(available == free as u64 && needed > available);
                assert_eq!(self.cache.pool().free_pages(), free);
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Computes attention to some sequences at once, paged, and compares each with the oracle on its dense copy.
    fn attend(&mut self, attend: &AttentionFn<'_>) {
        let batch: Vec<SequenceId> = (0..self.rng.usize(1..4)).filter_map(|_| self.any()).collect();
        let table = self.cache.pool().table(&batch).expect("they are there");
        let (group, rows) = (self.rng.usize(1..3), self.rng.usize(1..4));
        let heads = group * self.shape.num_kv_heads;
        let problem = self.cache.problem(&table, heads, rows).aligned(Alignment::BottomRight).causal().with_lse();
        let query: Vec<f32> = (0..problem.query_len()).map(|_| self.rng.f32() * 2.0 - 1.0).collect();
        let inputs = Inputs {
            kv_lengths: &table.kv_lengths,
            page_table: &table.entries,
            ..Inputs::new(&query[..], self.cache.key(), self.cache.value())
        };
        let got = attend(&problem, &inputs).expect("a valid problem");
        let (output, lse) = (got.output.to_f32(), got.lse.expect("asked for"));
        for (b, id) in batch.iter().enumerate() {
            let [key, value] = &self.naive[id];
            let length = key.len() / (self.shape.num_kv_heads * self.shape.head_dim);
            assert_eq!(length, self.cache.pool().length(*id).expect("it is there"));
            let dims = Dims { batch: 1, seq_len_kv: length, ..problem.dims };
            let mut dense = Problem::new(dims).aligned(Alignment::BottomRight).causal().with_lse();
            (dense.key.layout, dense.value.layout) = (Layout::Bshd, Layout::Bshd);
            let item = heads * rows * self.shape.head_dim;
            let expected = Expected::of(&dense, &Inputs::new(&query[b * item..][..item], &key[..], &value[..])).expect("a valid problem");
            let of = |all: &[f32], expected: &wgpu_attention::verify::ExpectedTensor| {
                let got = &all[b * expected.values.len()..][..expected.values.len()];
                agree(&format!("item {b}"), got, expected);
            };
            of(&output, &expected.output);
            of(&lse, &expected.lse.expect("asked for"));
        }
    }
}

/// Fills pages with NaN, so that a read of a page that belongs to no sequence shows.
fn poison(cache: &mut KvCache, shape: CacheShape, pages: impl IntoIterator<Item = u32>) {
    let (key, value) = cache.data_mut();
    for page in pages {
        for (data, dim) in [(&mut *key, shape.head_dim), (&mut *value, shape.head_dim_v)] {
            let len = shape.page_size * shape.num_kv_heads * dim;
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
    assert!(KvCache::new(shape_of(Layout::Strided(TensorSpec::default().strides([1; 4]))), 1).is_err());
    let mut cache = KvCache::new(shape_of(Layout::Bshd), 1).expect("valid");
    let id = cache.pool_mut().start();
    let (three, four) = ([0.0f32; 3], [0.0f32; 4]);
    assert_eq!(argument(cache.append(id, (&three[..]).into(), (&four[..]).into())), "key");
    assert_eq!(argument(cache.append(id, (&four[..]).into(), (&three[..]).into())), "value");
    assert_eq!(cache.pool().length(id), Ok(0));
}

fn shape_of(layout: Layout) -> CacheShape {
    CacheShape { page_size: 2, num_kv_heads: 1, head_dim: 4, head_dim_v: 4, dtype: DType::F32, layout }
}

/// Merges parts into the whole for any split of the keys, with scores in the hundreds and with empty parts.
#[test]
fn merged_parts_are_the_whole() {
    let mut rng = Rng::with_seed(7);
    for round in 0..200 {
        let keys = rng.usize(1..40);
        let dims = Dims { seq_len_q: 3, ..Dims::self_attention(1, 2, keys, 4) };
        let problem = Problem::new(dims).with_lse();
        let spread = [1.0, 30.0, 1000.0][round % 3];
        let mut some = |len: usize, spread: f32| (0..len).map(|_| (rng.f32() * 2.0 - 1.0) * spread).collect::<Vec<f32>>();
        let (query, key, value) = (some(24, 1.0), some(8 * keys, spread), some(8 * keys, 1.0));
        let expected = Expected::of(&problem, &Inputs::new(&query, &key, &value)).expect("valid");
        // Each key goes to a random part; some parts may be empty.
        let parts = rng.usize(1..7);
        let part_of: Vec<usize> = (0..keys).map(|_| rng.usize(..parts)).collect();
        let mut outputs: Vec<(Vec<f32>, Vec<f32>)> = (0..parts)
            .map(|part| {
                let mask: Vec<bool> = part_of.iter().map(|&of| of == part).collect();
                let mut masked = problem.clone();
                masked.visibility.mask = Some(wgpu_attention::BroadcastShape([1, 1, 1, keys]));
                let got = oracle(&masked, &Inputs { mask: &mask, ..Inputs::new(&query, &key, &value) }).expect("valid");
                let lse = got.lse.expect("asked for");
                // The output of an empty part is unspecified.
                let empty = lse[0] == f32::NEG_INFINITY;
                (got.output.to_f32().into_iter().map(|x| if empty { f32::NAN } else { x }).collect(), lse)
            })
            .collect();
        rng.shuffle(&mut outputs);
        let parts: Vec<Part<'_>> = outputs.iter().map(|(output, lse)| Part { output, lse }).collect();
        let merged = merge(&parts).expect("equal sizes");
        for (got, expected) in [(merged.output, expected.output), (merged.lse, expected.lse.expect("asked for"))] {
            agree(&format!("round {round}"), &got, &expected);
        }
    }
}

#[test]
fn merging_edges() {
    let empty = Part { output: &[f32::NAN; 2], lse: &[f32::NEG_INFINITY] };
    let merged = merge(&[empty, empty]).expect("equal sizes");
    assert_eq!((merged.output, merged.lse), (vec![0.0, 0.0], vec![f32::NEG_INFINITY]));
    let one = Part { output: &[1.0, -2.0], lse: &[700.0] };
    let merged = merge(&[empty, one]).expect("equal sizes");
    assert_eq!((merged.output, merged.lse), (vec![1.0, -2.0], vec![700.0]));
    // A sink with an equal lse halves the output.
    let sink = Part { output: &[0.0, 0.0], lse: &[700.0] };
    assert_eq!(merge(&[one, sink]).expect("equal sizes").output, [0.5, -1.0]);
    for lse in [f32::NAN, f32::INFINITY] {
        let spoilt = Part { output: &[1.0, 1.0], lse: &[lse] };
        let merged = merge(&[one, spoilt]).expect("equal sizes");
        assert!(merged.output.iter().chain(&merged.lse).all(|x| x.is_nan()), "{merged:?}");
    }
    assert!(merge(&[]).is_err() && merge(&[one, Part { output: &[1.0], lse: &[0.0] }]).is_err());
    assert!(merge(&[Part { output: &[1.0; 3], lse: &[0.0; 2] }]).is_err());
    assert!(merge(&[Part { output: &[], lse: &[] }]).expect("no rows").output.is_empty());
}
