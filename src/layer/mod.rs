//! Multi-head layer: attention between its projections.

mod backward;
mod linear;
mod masks;
mod matmul;
pub mod naive;
#[cfg(feature = "safetensors")]
mod weights;

pub use backward::{LayerGradients, LinearGradients};
pub use linear::Linear;
pub(crate) use masks::fold_broadcast;
pub use masks::{MergedMasks, TorchMask, average_heads, merge_torch_masks};
#[cfg(feature = "safetensors")]
pub use weights::{Naming, WeightFile, WeightTensor};

use crate::engine::{Engine, canary};
use crate::error::{Error, Result};
use crate::gpu::{self, LayerParts, RowMap, Waiting, block_on};
use crate::numbers::{DType, HostSlice};
use crate::problem::{Dims, Inputs, Layout, Outputs, Problem, TensorSpec};
use crate::progress::Progress;

/// Multi-head attention layer:
///
/// ```text
/// Q = X_q·W_Qᵀ + b_Q    [batch, seq_len_q, num_heads, head_dim]
/// K = X_k·W_Kᵀ + b_K    [batch, seq_len_kv, num_kv_heads, head_dim]
/// V = X_v·W_Vᵀ + b_V    [batch, seq_len_kv, num_kv_heads, head_dim_v]
/// context = attention(Q, K, V)
/// output  = Concat(heads of context)·W_Oᵀ + b_O    [batch, seq_len_q, embed_dim_out]
/// ```
///
/// Heads are side by side in the columns of a projection; attention reads them there by strides. In self-attention
/// X_q = X_k = X_v. The three may have different widths.
///
/// ```
/// use wgpu_attention::layer::{Linear, MultiHead};
/// use wgpu_attention::{Alignment, Backend, Engine, EngineOptions, Inputs};
///
/// let identity = |n: usize| Linear::new((0..n * n).map(|i| f32::from(i % (n + 1) == 0)).collect(), None, n);
/// let layer = MultiHead::new(identity(4)?, identity(4)?, identity(4)?, identity(4)?, 2, 2)?;
/// let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
/// let x = vec![0.5f32; 3 * 4];
/// let problem = layer.problem(1, 3, 3).aligned(Alignment::TopLeft).causal();
/// let outputs = layer.forward(&engine, &problem, &Inputs::new(&x, &x, &x))?;
/// assert_eq!(outputs.output, x);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MultiHead {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    appended: Appended,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    head_dim_v: usize,
}

/// Keys and values appended to those of every item, like PyTorch's `add_bias_kv` and `add_zero_attn`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Appended {
    /// Learned key [num_kv_heads * head_dim] and value [num_kv_heads * head_dim_v].
    pub bias_kv: Option<(Vec<f32>, Vec<f32>)>,
    /// True if a key and a value of zeros follow.
    pub zero: bool,
}

impl Appended {
    /// Number of appended keys: 0, 1 or 2.
    pub fn count(&self) -> usize {
        usize::from(self.bias_kv.is_some()) + usize::from(self.zero)
    }
}

/// Results of the layer, in host memory, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerOutputs {
    /// Output [batch, seq_len_q, embed_dim_out].
    pub output: Vec<f32>,
    /// Log-sum-exp of each row, if [`Problem::want`] asks for it.
    pub lse: Option<Vec<f32>>,
    /// Softmax statistics, if [`Problem::want`] asks for them. [`MultiHead::backward`] uses them, or recomputes them.
    pub stats: Option<Vec<[f32; 2]>>,
    /// Scores, if [`Problem::want`] asks for them.
    pub scores: Option<Vec<f32>>,
    /// Weights of every head, if [`Problem::want`] asks for them. [`average_heads`] returns their mean.
    pub weights: Option<Vec<f32>>,
    /// Sums of each key's weights, if [`Problem::want`] asks for them.
    pub key_sums: Option<Vec<f32>>,
    /// Intermediate results, from [`MultiHead::forward_with_steps`].
    pub steps: Option<Steps>,
}

/// Intermediate results of a layer, f32, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// Q: [batch, seq_len_q, num_heads, head_dim].
    pub query: Vec<f32>,
    /// K, with the appended keys: [batch, seq_len_kv, num_kv_heads, head_dim].
    pub key: Vec<f32>,
    /// V, with the appended values: [batch, seq_len_kv, num_kv_heads, head_dim_v].
    pub value: Vec<f32>,
    /// Outputs of the heads, side by side: [batch, seq_len_q, num_heads, head_dim_v].
    pub context: Vec<f32>,
}

/// Results of the attention, Y, and Q, K and V if they are there.
type Computed = (Outputs, Vec<f32>, Option<[Vec<f32>; 3]>);

impl MultiHead {
    /// Creates a layer from its four projections. `num_kv_heads` is `num_heads` unless heads are grouped. Head widths
    /// follow from the shapes: W_Q [num_heads * head_dim, _], W_K [num_kv_heads * head_dim, _], W_V
    /// [num_kv_heads * head_dim_v, _], W_O [_, num_heads * head_dim_v]. Any other shape is an error.
    pub fn new(query: Linear, key: Linear, value: Linear, output: Linear, num_heads: usize, num_kv_heads: usize) -> Result<Self> {
        Error::check_sizes([("num_heads", num_heads), ("num_kv_heads", num_kv_heads)])?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            let why = format!("num_heads = {num_heads} is not a multiple of num_kv_heads = {num_kv_heads}");
            return Err(Error::invalid("num_kv_heads", why));
        }
        for (argument, linear, heads) in [("w_q", &query, num_heads), ("w_v", &value, num_kv_heads)] {
            if !linear.out_features().is_multiple_of(heads) {
                return Err(Error::invalid(argument, format!("{} rows do not divide into {heads} heads", linear.out_features())));
            }
        }
        let (head_dim, head_dim_v) = (query.out_features() / num_heads, value.out_features() / num_kv_heads);
        let expect = |argument, what, found: usize, expected: usize, of| {
            if found == expected {
                return Ok(());
            }
            Err(Error::invalid(argument, format!("has {found} {what}, must have {expected}: {of}")))
        };
        expect("w_k", "rows", key.out_features(), num_kv_heads.saturating_mul(head_dim), "num_kv_heads x the head_dim of w_q")?;
        expect("w_o", "columns", output.in_features(), num_heads.saturating_mul(head_dim_v), "num_heads x the head_dim_v of w_v")?;
        Ok(Self { query, key, value, output, appended: Appended::default(), num_heads, num_kv_heads, head_dim, head_dim_v })
    }

    /// Returns the layer with keys and values appended. They count in `seq_len_kv` of the problem, masks and biases
    /// ([`merge_torch_masks`] leaves them visible), and have no rows in the inputs.
    pub fn with_appended(mut self, appended: Appended) -> Result<Self> {
        if let Some((key, value)) = &appended.bias_kv {
            for (argument, found, linear) in [("bias_k", key.len(), &self.key), ("bias_v", value.len(), &self.value)] {
                if found != linear.out_features() {
                    return Err(Error::invalid(argument, format!("has {found} numbers, must have {}", linear.out_features())));
                }
            }
        }
        self.appended = appended;
        Ok(self)
    }

    /// Projection X_q -> Q.
    pub fn query(&self) -> &Linear {
        &self.query
    }

    /// Projection X_k -> K.
    pub fn key(&self) -> &Linear {
        &self.key
    }

    /// Projection X_v -> V.
    pub fn value(&self) -> &Linear {
        &self.value
    }

    /// Projection context -> output.
    pub fn output(&self) -> &Linear {
        &self.output
    }

    /// Keys and values appended to those of every item.
    pub fn appended(&self) -> &Appended {
        &self.appended
    }

    /// Number of query heads.
    pub fn num_heads(&self) -> usize {
        self.num_heads
    }

    /// Problem of this layer's attention, every key visible. Add causality, masks, biases and wants, and pass it to
    /// [`Self::forward`]. `seq_len_kv` counts the keys of the input; the problem's also counts the appended ones.
    pub fn problem(&self, batch: usize, seq_len_q: usize, seq_len_kv: usize) -> Problem {
        Problem::new(Dims {
            batch,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            seq_len_q,
            seq_len_kv: seq_len_kv.saturating_add(self.appended.count()),
            head_dim: self.head_dim,
            head_dim_v: self.head_dim_v,
        })
        .stored(DType::F32, Layout::Bshd)
    }

    /// Computes the layer on `engine`. `inputs` holds X_q [batch, seq_len_q, embed_dim_q], X_k and X_v
    /// [batch, seq_len_kv less appended keys, embed_dim] as query, key and value, f32 and contiguous (varlen:
    /// [tokens, embed_dim]), and the other data of `problem`. `problem` stores its tensors as [`Self::problem`] does.
    pub fn forward(&self, engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<LayerOutputs> {
        let computed = self.compute(engine, problem, inputs, (false, Waiting::Blocking));
        block_on(computed, "MultiHead::forward_async")
    }

    /// [`Self::forward`] without blocking; see [`Engine::attention_async`].
    pub async fn forward_async(&self, engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<LayerOutputs> {
        self.compute(engine, problem, inputs, (false, Waiting::Async)).await
    }

    /// [`Self::forward`] that also returns Q, K, V and the outputs of the heads.
    pub fn forward_with_steps(&self, engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<LayerOutputs> {
        let computed = self.compute(engine, problem, inputs, (true, Waiting::Blocking));
        block_on(computed, "MultiHead::forward_with_steps_async")
    }

    /// [`Self::forward_with_steps`] without blocking; see [`Engine::attention_async`].
    pub async fn forward_with_steps_async(&self, engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<LayerOutputs> {
        self.compute(engine, problem, inputs, (true, Waiting::Async)).await
    }

    async fn compute(
        &self,
        engine: &Engine,
        problem: &Problem,
        inputs: &Inputs<'_>,
        (steps, waiting): (bool, Waiting),
    ) -> Result<LayerOutputs> {
        let x = self.check(problem, inputs)?;
        let mut runs = None;
        // Empty buffers cannot be bound.
        if let Some(gpu) = engine.gpu().filter(|_| x.iter().all(|x| !x.is_empty())) {
            let checked = canary::check(gpu, problem, engine.algorithm(), waiting).await;
            runs = engine.may_run(checked)?.then_some(gpu);
        }
        let (attention, output, projected) = match runs {
            Some(gpu) => {
                let parts = LayerParts {
                    x,
                    projections: [&self.query, &self.key, &self.value, &self.output].map(Linear::projection),
                    rows: self.rows(problem),
                    appended: self.appended_rows(),
                };
                let (attention, results) = gpu::layer(gpu, problem, engine.algorithm(), inputs, &parts, (steps, waiting)).await?;
                let mut results = results.into_iter();
                (attention, results.next().unwrap_or_default(), results.collect::<Vec<_>>().try_into().ok())
            }
            None => self.on_host(engine, problem, inputs, x, waiting).await?,
        };
        let Outputs { output: context, lse, stats, scores, weights, key_sums } = attention;
        let projected = projected.filter(|_| steps);
        let steps = projected.map(|[query, key, value]| Steps { query, key, value, context: context.into_f32() });
        Ok(LayerOutputs { output, lse, stats, scores, weights, key_sums, steps })
    }

    async fn on_host(&self, engine: &Engine, problem: &Problem, inputs: &Inputs<'_>, x: [&[f32]; 3], waiting: Waiting) -> Result<Computed> {
        let [x_q, x_k, x_v] = x;
        let [extra_k, extra_v] = self.appended_rows();
        let query = self.query.forward(x_q)?;
        let key = append(self.key.forward(x_k)?, problem.dims.batch, &extra_k);
        let value = append(self.value.forward(x_v)?, problem.dims.batch, &extra_v);
        let projected = Inputs { query: (&query).into(), key: (&key).into(), value: (&value).into(), ..*inputs };
        let attention = engine.run(problem, &projected, waiting, &mut Progress::default()).await?;
        let context = attention.output.into_f32();
        let output = self.output.forward(&context)?;
        Ok((Outputs { output: context.into(), ..attention }, output, Some([query, key, value])))
    }

    /// Rows of Q, and of K and V.
    fn rows(&self, problem: &Problem) -> [RowMap; 2] {
        let (d, appended) = (&problem.dims, self.appended.count());
        match problem.varlen {
            Some(varlen) => [varlen.tokens_q, varlen.tokens_kv].map(RowMap::plain),
            None => {
                let own_keys = d.seq_len_kv - appended;
                [RowMap { items: d.batch, own: d.seq_len_q, appended: 0 }, RowMap { items: d.batch, own: own_keys, appended }]
            }
        }
    }

    /// Rows appended to those of every item of K and of V.
    fn appended_rows(&self) -> [Vec<f32>; 2] {
        let Appended { bias_kv, zero } = &self.appended;
        let (key, value) = bias_kv.clone().unwrap_or_default();
        [(key, &self.key), (value, &self.value)].map(|(mut rows, linear)| {
            rows.resize(rows.len() + if *zero { linear.out_features() } else { 0 }, 0.0);
            rows
        })
    }

    /// Checks layer, problem and inputs against each other. Returns X_q, X_k and X_v.
    fn check<'a>(&self, problem: &Problem, inputs: &Inputs<'a>) -> Result<[&'a [f32]; 3]> {
        problem.check()?;
        inputs.check_options(problem)?;
        let d = &problem.dims;
        let expected = [self.num_heads, self.num_kv_heads, self.head_dim, self.head_dim_v];
        if [d.num_heads, d.num_kv_heads, d.head_dim, d.head_dim_v] != expected {
            let why = format!("num_heads, num_kv_heads, head_dim, head_dim_v must be {expected:?}; start from MultiHead::problem");
            return Err(Error::invalid("problem", format!("its heads are not the layer's: {why}")));
        }
        let side_by_side = TensorSpec::new(DType::F32, Layout::Bshd);
        if [problem.query, problem.key, problem.value, problem.output] != [side_by_side; 4] {
            return Err(Error::invalid("problem", "a layer's tensors are f32, heads side by side: start from MultiHead::problem"));
        }
        let appended = self.appended.count();
        if d.seq_len_kv < appended {
            return Err(Error::invalid("seq_len_kv", format!("is {}, less than the {appended} appended keys", d.seq_len_kv)));
        }
        if problem.paged.is_some() {
            return Err(Error::unsupported("paged keys in a layer, which makes its keys itself", "run the attention alone"));
        }
        if appended > 0 && (problem.varlen.is_some() || problem.visibility.kv_lengths) {
            let remedy = "give the lengths as a boolean mask that leaves the appended keys visible";
            return Err(Error::unsupported("appended keys with varlen sequences or kv_lengths", remedy));
        }
        let [rows_q, rows_kv] = self.rows(problem).map(RowMap::own);
        let slices = [
            ("query", inputs.query, &self.query, rows_q),
            ("key", inputs.key, &self.key, rows_kv),
            ("value", inputs.value, &self.value, rows_kv),
        ];
        let mut x: [&[f32]; 3] = [&[]; 3];
        for (x, (argument, slice, linear, rows)) in x.iter_mut().zip(slices) {
            let HostSlice::F32(data) = slice else {
                return Err(Error::invalid(argument, format!("the data is {}, the layer takes f32", slice.dtype())));
            };
            let columns = linear.in_features();
            if rows.checked_mul(columns) != Some(data.len()) {
                return Err(Error::invalid(argument, format!("has {} numbers, must have {rows} rows of {columns}", data.len())));
            }
            *x = data;
        }
        Ok(x)
    }
}

/// Appends `extra` to the rows of every item.
fn append(rows: Vec<f32>, batch: usize, extra: &[f32]) -> Vec<f32> {
    if extra.is_empty() || batch == 0 {
        return rows;
    }
    let item = rows.len() / batch;
    (0..batch).flat_map(|b| rows[b * item..][..item].iter().chain(extra)).copied().collect()
}
