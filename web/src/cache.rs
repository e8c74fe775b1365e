//! Decoding caches: plans of their steps, and the bookkeeping of their sequences. The package has the buffers.

use js_sys::{Array, Object, Uint32Array};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wgpu_attention::cache::{AppendSpec, CachePlan, CacheShape, CacheSize, Growth, LayerShape, Ledger, Queries, StateWrite};
use wgpu_attention::plan::PlanExport;
use wgpu_attention::{Algorithm, Alignment, DType, Layout, Problem, TensorSpec};

use crate::device::caps;
use crate::errors::{Answer, Thrown, invalid, to_js};
use crate::object::{check_names, count, member, set, word};
use crate::stored::Stored;

/// New tokens and queries: f32 [slots, heads, tokens, dim].
const NEW: TensorSpec = TensorSpec::new(DType::F32, Layout::Bhsd);

/// Cache of one layer.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Cache {
    plan: CachePlan,
    ledger: Ledger,
    num_heads: usize,
    window_left: Option<u32>,
}

#[wasm_bindgen]
impl Cache {
    /// Plans a cache for a device.
    #[wasm_bindgen(constructor)]
    pub fn new(options: &JsValue, described: &JsValue) -> Result<Self, Thrown> {
        const NAMES: &[&str] = &["numHeads", "numKvHeads", "headDim", "stored", "sequences", "capacity", "pageSize", "causal", "window"];
        check_names(options, "options", NAMES)?;
        let required = |name| count(options, name)?.ok_or_else(|| invalid(name, "is missing", "give { numHeads, headDim, capacity }"));
        let (num_heads, head_dim, capacity) = (required("numHeads")?, required("headDim")?, required("capacity")?);
        let num_kv_heads = count(options, "numKvHeads")?.unwrap_or(num_heads);
        let (slots, page_size) = (count(options, "sequences")?.unwrap_or(1), count(options, "pageSize")?.unwrap_or(64));
        word(options, "causal", &[("bottom-right", ())])?;
        let window_left = member(options, "window").map(|window| {
            check_names(&window, "window", &["left"])?;
            count(&window, "left")
        });
        let Stored { key, value, hadamard } = Stored::read(member(options, "stored"))?;
        let pages_per_slot = capacity.div_ceil(page_size.max(1));
        let layer = LayerShape::new(num_kv_heads, head_dim).stored(key, value).hadamard(hadamard, hadamard);
        let shape = CacheShape::uniform(1, layer).page_size(page_size).pages(slots.saturating_mul(pages_per_slot));
        let plan = CachePlan::new(shape, CacheSize { slots, pages_per_slot }, &caps(described)?).map_err(to_js)?;
        let ledger = plan.ledger().map_err(to_js)?;
        let window_left = window_left.transpose()?.flatten().map(|left| left as u32);
        Ok(Self { plan, ledger, num_heads, window_left })
    }

    /// Bytes of the state.
    #[wasm_bindgen(getter = stateBytes)]
    pub fn state_bytes(&self) -> f64 {
        self.plan.state_bytes() as f64
    }

    /// Bytes of the pools of keys and of values of each bank, [banks, key, value].
    #[wasm_bindgen(getter)]
    pub fn pools(&self) -> Result<Vec<f64>, Thrown> {
        let [key, value] = self.plan.pool_bytes(0).map_err(to_js)?;
        Ok(vec![self.plan.banks(0).map_err(to_js)? as f64, key as f64, value as f64])
    }

    /// Starts an empty sequence. Returns its slot.
    pub fn start(&mut self) -> Result<usize, Thrown> {
        self.ledger.start().map_err(to_js)
    }

    /// Removes a sequence.
    pub fn release(&mut self, slot: usize) -> Result<(), Thrown> {
        self.ledger.free(slot).map(|_| ()).map_err(to_js)
    }

    /// Removes the tokens of a sequence from `length` on.
    pub fn truncate(&mut self, slot: usize, length: usize) -> Result<(), Thrown> {
        self.ledger.truncate(slot, length).map(|_| ()).map_err(to_js)
    }

    /// Number of tokens of a sequence.
    pub fn length(&self, slot: usize) -> Result<usize, Thrown> {
        self.ledger.length(slot).map_err(to_js)
    }

    /// Adds tokens to each sequence. Returns what must be written to the state: `[{ offset, words }]`, in words.
    pub fn extend(&mut self, tokens: usize) -> Result<Array, Thrown> {
        let slots = self.plan.size().slots;
        let tokens: Vec<usize> = (0..slots).map(|slot| if self.ledger.length(slot).is_ok() { tokens } else { 0 }).collect();
        // Nothing is copied, because no sequence was forked.
        self.ledger.extend(Growth { tokens: &tokens, steps: 1 }).map_err(to_js)?;
        let write = |StateWrite { offset, words }: StateWrite| {
            let object = Object::new();
            set(&object, "offset", &(offset as f64).into());
            set(&object, "words", &Uint32Array::from(&words[..]));
            object
        };
        Ok(self.ledger.take_writes().into_iter().map(write).collect())
    }

    /// Plan of the first dispatch of a step, as JSON.
    pub fn advance(&self) -> Result<String, Thrown> {
        self.plan.advance().map(|export| export.to_json()).map_err(to_js)
    }

    /// Plans that append tokens, one for each bank, as JSON.
    pub fn append(&self, tokens: usize) -> Result<Vec<String>, Thrown> {
        let slots = 0..self.plan.size().slots;
        let new = AppendSpec { slots, seq_len: tokens, key: NEW, value: NEW, rotation: None };
        let exports = self.plan.append(0, &new).map_err(to_js)?;
        Ok(exports.iter().map(PlanExport::to_json).collect())
    }

    /// Plans of the attention of `tokens` queries, one for each bank, as JSON.
    pub fn attention(&self, tokens: usize) -> Result<Vec<String>, Thrown> {
        let problem = self.problem(tokens)?;
        let plans = self.plan.attention(0, &problem, 0..self.plan.size().slots, Algorithm::Auto).map_err(to_js)?;
        plans.iter().map(|plan| plan.export().map(|export| export.to_json()).map_err(to_js)).collect()
    }
}

impl Cache {
    fn problem(&self, tokens: usize) -> Answer<Problem> {
        let queries = Queries { num_heads: self.num_heads, seq_len: tokens };
        let mut problem = self.plan.problem(0, 0..self.plan.size().slots, queries).map_err(to_js)?;
        problem = problem.aligned(Alignment::BottomRight).causal();
        problem.visibility.window_left = self.window_left;
        Ok(problem)
    }
}
