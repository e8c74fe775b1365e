//! Cache in host memory under test.

use wgpu_attention::cache::{CacheShape, KeptRows, KvCache, PagePool, Queries, SequenceId};
use wgpu_attention::{Engine, Error, HostVec, Inputs, Layout, Result};

use super::subject::{Plant, ROWS, Step, Subject, masked, sides};

/// Cache in host memory, with an engine that attends to it.
pub(super) struct OnHost {
    cache: KvCache,
    engine: Engine,
    slots: Vec<Option<SequenceId>>,
    plant: Option<Plant>,
}

impl OnHost {
    pub(super) fn new(engine: Engine, shape: CacheShape, slots: usize, plant: Option<Plant>) -> Result<Self> {
        Ok(Self { cache: KvCache::new(shape)?, engine, slots: vec![None; slots], plant })
    }

    fn id(&self, slot: usize) -> Result<SequenceId> {
        self.slots[slot].ok_or(Error::Invalid { argument: "slot", why: "is empty".into() })
    }

    fn free_slot(&self) -> Result<usize> {
        let slots = self.slots.len() as u64;
        let none = Error::Limit { limit: "slots of the cache", needed: slots + 1, available: slots, remedy: String::new() };
        self.slots.iter().position(Option::is_none).ok_or(none)
    }

    /// Attends to the sequences that have gained `rows` tokens.
    fn attend(&self, layer: usize, step: &Step<'_>, rows: usize, output: &mut [f32]) -> Result<()> {
        let [(heads, dim), _, (_, dim_v)] = sides(&self.cache.shape().layers[layer]);
        let slots: Vec<usize> = (0..self.slots.len()).filter(|&slot| step.tokens[slot] == rows).collect();
        let batch = slots.iter().map(|&slot| self.id(slot)).collect::<Result<Vec<_>>>()?;
        let table = self.cache.pool().table(&batch)?;
        let mut problem = masked(self.cache.problem(layer, &table, Queries { num_heads: heads, seq_len: rows })?);
        (problem.query.layout, problem.output.layout) = (Layout::Bshd, Layout::Bshd);
        let query = slots.iter().flat_map(|&slot| last_rows(&step.rows[layer][0], slot, rows, heads * dim)).copied().collect::<Vec<_>>();
        let inputs = Inputs {
            kv_lengths: &table.kv_lengths,
            page_table: &table.entries,
            ..Inputs::new(&query, self.cache.key(layer)?, self.cache.value(layer)?)
        };
        let got = self.engine.attention(&problem, &inputs)?.output.to_f32();
        for (&slot, got) in slots.iter().zip(got.chunks(rows * heads * dim_v)) {
            output[(slot + 1) * ROWS * heads * dim_v - got.len()..][..got.len()].copy_from_slice(got);
        }
        if self.plant == Some(Plant::Wrong) {
            output.iter_mut().for_each(|x| *x += 0.01);
        }
        Ok(())
    }
}

/// Last rows of a slot.
fn last_rows(all: &[f32], slot: usize, rows: usize, width: usize) -> &[f32] {
    &all[((slot + 1) * ROWS - rows) * width..(slot + 1) * ROWS * width]
}

impl Subject for OnHost {
    fn pool(&self) -> &PagePool {
        self.cache.pool()
    }

    fn length(&self, slot: usize) -> Result<usize> {
        self.cache.pool().length(self.id(slot)?)
    }

    fn pages(&self, slot: usize) -> Result<&[u32]> {
        self.cache.pool().pages_of(self.id(slot)?)
    }

    fn most_steps(&self) -> usize {
        1
    }

    fn start(&mut self) -> Result<usize> {
        let slot = self.free_slot()?;
        self.slots[slot] = Some(self.cache.pool_mut().start());
        Ok(slot)
    }

    fn fork(&mut self, slot: usize, prefix: usize) -> Result<usize> {
        let (id, to) = (self.id(slot)?, self.free_slot()?);
        let is_alias = self.plant == Some(Plant::Alias) && self.length(slot)? == prefix;
        self.slots[to] = Some(if is_alias { id } else { self.cache.pool_mut().fork(id, prefix)? });
        Ok(to)
    }

    fn end(&mut self, slot: usize) -> Result<()> {
        let id = self.id(slot)?;
        if self.plant == Some(Plant::Lost) {
            let length = self.length(slot)?;
            self.cache.pool_mut().fork(id, length)?;
        }
        self.cache.pool_mut().free(id)?;
        self.slots[slot] = None;
        Ok(())
    }

    fn truncate(&mut self, slot: usize, length: usize) -> Result<()> {
        let id = self.id(slot)?;
        self.cache.pool_mut().truncate(id, length).map(|_| ())
    }

    fn keep(&mut self, KeptRows { slot, last, rows }: KeptRows<'_>) -> Result<()> {
        let id = self.id(slot)?;
        let beside = rows.iter().map(|row| row.saturating_sub(1)).collect::<Vec<_>>();
        let is_beside = self.plant == Some(Plant::Beside) && rows.len() == 1;
        let rows = if is_beside { &beside } else { rows };
        self.cache.keep(id, last, rows).map(|_| ())
    }

    fn extend(&mut self, tokens: &[usize], _: usize) -> Result<()> {
        let growing = tokens.iter().enumerate().filter(|&(_, &count)| count > 0);
        let growing = growing.map(|(slot, &count)| Ok((self.id(slot)?, count))).collect::<Result<Vec<_>>>()?;
        if self.plant == Some(Plant::Uncopied) {
            return growing.into_iter().try_for_each(|(id, count)| self.cache.pool_mut().append(id, count).map(|_| ()));
        }
        self.cache.extend_all(&growing)
    }

    fn step(&mut self, step: &Step<'_>, attends: bool) -> Result<Vec<Vec<f32>>> {
        let mut outputs = Vec::new();
        for (layer, rows) in step.rows.iter().enumerate() {
            let [(heads, _), key, value] = sides(&self.cache.shape().layers[layer]);
            for (slot, &count) in step.tokens.iter().enumerate().filter(|&(_, &count)| count > 0) {
                let new = |side: usize, (heads, dim): (usize, usize)| last_rows(&rows[side], slot, count, heads * dim);
                self.cache.append(layer, self.id(slot)?, new(1, key).into(), new(2, value).into())?;
            }
            if attends {
                let mut output = vec![0.0; step.tokens.len() * ROWS * heads * value.1];
                (1..=ROWS).try_for_each(|rows| self.attend(layer, step, rows, &mut output))?;
                outputs.push(output);
            }
        }
        Ok(outputs)
    }

    fn stored(&self, layer: usize) -> Result<[HostVec; 2]> {
        Ok([self.cache.key(layer)?, self.cache.value(layer)?].map(|data| {
            let len = data.len();
            crate::host::stored(data.dtype(), data.bytes(), len)
        }))
    }
}
