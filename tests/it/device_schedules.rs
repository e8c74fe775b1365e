//! Random schedules on a device cache, compared with the expected contents of each slot.

use crate::common::buffers::read;
use crate::common::stack::{Stack, gpus};
use crate::common::{STORAGE, agree};
use fastrand::Rng;
use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{CacheSize, DeviceCache, Gpu, Growth};
use wgpu_attention::verify::Expected;
use wgpu_attention::{Alignment, Dims, Error, HostVec, Inputs, Layout, Problem};

/// Device cache and the expected contents of each slot, driven by random operations.
struct Schedule<'a> {
    rng: Rng,
    gpu: &'a Gpu,
    cache: DeviceCache,
    naive: Vec<Option<[Vec<f32>; 2]>>,
}

impl<'a> Schedule<'a> {
    fn new(gpu: &'a Gpu, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let dtype = STORAGE[seed as usize % 5];
        let page_size = [1, 2, 4, 7, 16][rng.usize(..5)];
        let layout = [Layout::Bshd, Layout::Bhsd][rng.usize(..2)];
        let layer = LayerShape::new(rng.usize(1..=2), 32).stored(dtype, dtype);
        let size = CacheSize { slots: rng.usize(2..5), pages_per_slot: 24usize.div_ceil(page_size) };
        let pages = rng.usize(1..20);
        let shape = CacheShape::uniform(1, layer).page_size(page_size).pages(pages).layout(layout);
        let cache = DeviceCache::new(gpu, shape, size).expect("a cache");
        let schedule = Self { rng, gpu, naive: vec![None; size.slots], cache };
        schedule.poison(0..pages as u32);
        schedule
    }

    /// Fills pages with NaN, so that a wrong read shows: all bits set are NaN in every type, and in a block's scale.
    fn poison(&self, pages: impl IntoIterator<Item = u32>) {
        let [key, value] = &self.cache.pools(0).expect("a layer")[0];
        let page = vec![0xffu8; self.cache.shape().page_bytes() / 2];
        for number in pages {
            for pool in [key, value] {
                self.gpu.queue().write_buffer(pool, u64::from(number) * page.len() as u64, &page);
            }
        }
    }

    fn any(&mut self) -> Option<usize> {
        let there: Vec<usize> = (0..self.naive.len()).filter(|&slot| self.naive[slot].is_some()).collect();
        (!there.is_empty()).then(|| there[self.rng.usize(..there.len())])
    }

    fn row(&self) -> usize {
        self.cache.shape().layers[0].num_kv_heads * 32
    }

    fn step(&mut self) {
        match (self.rng.u8(..16), self.any()) {
            (0 | 1, _) | (_, None) => match self.cache.start() {
                Ok(slot) => assert!(self.naive[slot].replace(Default::default()).is_none()),
                Err(error) => assert!(matches!(error, Error::Limit { .. }) && self.naive.iter().all(Option::is_some), "{error}"),
            },
            (2..9, Some(_)) => self.extend(),
            (9 | 10, Some(slot)) => {
                let prefix = self.rng.usize(0..=self.cache.length(slot).expect("there"));
                let cut = prefix * self.row();
                match self.cache.fork(slot, prefix) {
                    Ok(to) => self.naive[to] = self.naive[slot].as_ref().map(|data| [data[0][..cut].to_vec(), data[1][..cut].to_vec()]),
                    Err(error) => assert!(matches!(error, Error::Limit { .. }) && self.naive.iter().all(Option::is_some), "{error}"),
                }
            }
            (11, Some(slot)) => {
                let freed = self.cache.free(slot).expect("there");
                self.naive[slot] = None;
                self.poison(freed);
                assert!(self.cache.length(slot).is_err() && self.cache.free(slot).is_err());
            }
            (12, Some(slot)) => {
                let length = self.rng.usize(0..=self.cache.length(slot).expect("there"));
                let freed = self.cache.truncate(slot, length).expect("there");
                self.poison(freed);
                let cut = length * self.row();
                self.naive[slot].as_mut().expect("there").iter_mut().for_each(|data| data.truncate(cut));
            }
            (13, Some(_)) => {
                let (pages, more) = (self.cache.pool().pages() as u32, self.rng.u32(1..4));
                let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
                self.cache.grow(more as usize, &mut encoder).expect("a few more");
                self.gpu.queue().submit([encoder.finish()]);
                self.poison(pages..pages + more);
            }
            (_, Some(_)) => {}
        }
    }

    /// Appends tokens to some slots, and computes attention of all slots to their new contents.
    fn extend(&mut self) {
        let seq_len = [1, 1, 3, 9][self.rng.usize(..4)];
        let tokens: Vec<usize> = self
            .naive
            .iter()
            .map(|data| if data.is_some() { [0, seq_len, self.rng.usize(0..=seq_len)][self.rng.usize(..3)] } else { 0 })
            .collect();
        let row = self.row();
        let free = self.cache.pool().free_pages();
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        if let Err(error) = self.cache.extend(Growth { tokens: &tokens, steps: 1 }, &mut encoder) {
            assert!(matches!(error, Error::Limit { .. }), "{error}");
            assert_eq!(self.cache.pool().free_pages(), free);
            return;
        }
        let heads = 2 * self.cache.shape().layers[0].num_kv_heads;
        let look = |problem: Problem| problem.aligned(Alignment::BottomRight).causal();
        let stack = Stack::new(self.gpu, &self.cache, Queries { num_heads: heads, seq_len }, look, (&[], None), None);
        let layer = &stack.layers[0];
        let problem = layer.problem.clone();
        let data = [&layer.query, &layer.key, &layer.value].map(|buffer| {
            let data: Vec<f32> = (0..buffer.size() / 4).map(|_| self.rng.f32() * 4.0 - 2.0).collect();
            self.gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&data));
            data
        });
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            stack.record(&self.cache, &mut pass);
        }
        self.gpu.queue().submit([encoder.finish()]);
        let output = read(self.gpu.device(), self.gpu.queue(), &layer.output);
        for (slot, naive) in self.naive.iter_mut().enumerate().filter_map(|(slot, naive)| naive.as_mut().map(|naive| (slot, naive))) {
            for (naive, new) in naive.iter_mut().zip(&data[1..]) {
                let new = &new[slot * seq_len * row..][(seq_len - tokens[slot]) * row..seq_len * row];
                naive.extend(HostVec::from_f32(self.cache.shape().layers[0].key, new).to_f32());
            }
            let length = naive[0].len() / row;
            assert_eq!(length, self.cache.length(slot).expect("there"));
            let mut dense = Problem::new(Dims { batch: 1, seq_len_kv: length, ..problem.dims }).aligned(Alignment::BottomRight).causal();
            (dense.key.layout, dense.value.layout) = (Layout::Bshd, Layout::Bshd);
            let item = heads * seq_len * 32;
            let inputs = Inputs::new(&data[0][slot * item..][..item], &naive[0], &naive[1]);
            let expected = Expected::of(&dense, &inputs).expect("valid").output;
            agree(&format!("slot {slot} of {tokens:?}"), &output[slot * item..][..item], &expected);
        }
    }
}

#[test]
fn slots_have_their_expected_contents() {
    for gpu in gpus() {
        for seed in 0..10 {
            let mut schedule = Schedule::new(&gpu, seed);
            (0..40).for_each(|_| schedule.step());
            for slot in 0..schedule.naive.len() {
                assert_eq!(schedule.cache.free(slot).is_ok(), schedule.naive[slot].is_some());
            }
            assert_eq!(schedule.cache.pool().free_pages(), schedule.cache.pool().pages(), "schedule {seed} lost pages");
        }
    }
}
