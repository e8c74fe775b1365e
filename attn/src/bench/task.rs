//! Problems to time: shapes given one by one, or those of the suite.

use std::fmt;

use serde_json::{Value, json};
use wgpu_attention::{Alignment, BroadcastShape, DType, Dims, Layout, Problem, WantGradients, term_words};

use crate::backend::one_of;
use crate::failure::Failure;
use crate::user_terms::UserTerms;

/// Shapes for `--suite`, compiled into the program.
const SUITE: &str = include_str!("../../suite.txt");

/// Parses the sizes of a problem.
pub(crate) fn shape(text: &str) -> Result<Dims, String> {
    let size = |size: &str| size.trim().parse().map_err(|_| format!("`{}` is not a whole number", size.trim()));
    let sizes: Vec<usize> = text.split(',').map(size).collect::<Result<_, _>>()?;
    let [batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim] = sizes[..] else {
        return Err(format!("has {} numbers; six are needed, B,H,HKV,LQ,LK,D", sizes.len()));
    };
    let dims = Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v: head_dim };
    Problem::new(dims).check().map_err(|error| error.to_string())?;
    let names = ["batch", "num_heads", "num_kv_heads", "seq_len_q", "seq_len_kv", "head_dim"];
    match names.iter().zip(&sizes).find(|&(_, &size)| size == 0) {
        Some((name, _)) => Err(format!("{name} is 0: there is nothing to compute")),
        None => Ok(dims),
    }
}

/// Options for the problems to time.
#[derive(clap::Args, Debug)]
pub(crate) struct ShapeArgs {
    /// Batch, query heads, key/value heads, queries, keys, head_dim; may be repeated
    /// [default: a prefill and a step of decoding]
    #[arg(long, value_name = "B,H,HKV,LQ,LK,D", value_parser = shape)]
    pub(super) shape: Vec<Dims>,
    /// Apply a causal mask to every shape, bottom-right aligned: the last query is at the last key
    #[arg(long)]
    pub(super) causal: bool,
    /// Option that masks or changes the scores of every shape, such as window=128,0 or alibi=symmetric; may be repeated
    #[arg(long, value_name = "WORD[=VALUE]")]
    pub(super) term: Vec<String>,
    /// Add a random bias of this shape to the scores, each size 1 or full; with --backward its gradient is computed too
    #[arg(long, value_name = "B,H,LQ,LK", value_parser = bias)]
    pub(super) bias: Option<BroadcastShape>,
    /// Do not compute the gradient of the bias
    #[arg(long, requires = "bias")]
    pub(super) constant_bias: bool,
    /// Give each item of the batch a number of its own of keys, drawn from this interval
    #[arg(long, value_name = "FROM..TO", value_parser = interval)]
    pub(super) kv_lengths: Option<[u32; 2]>,
    /// Storage type of query, key, value and output: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = float)]
    pub(super) dtype: DType,
}

fn bias(text: &str) -> Result<BroadcastShape, String> {
    let sizes: Option<Vec<usize>> = text.split(',').map(|size| size.trim().parse().ok()).collect();
    sizes.and_then(|sizes| sizes.try_into().ok()).map(BroadcastShape).ok_or("four sizes are needed, B,H,LQ,LK".into())
}

fn interval(text: &str) -> Result<[u32; 2], String> {
    let (from, to) = text.split_once("..").ok_or("say FROM..TO, such as 16..8192")?;
    match [from, to].map(str::parse) {
        [Ok(from), Ok(to)] if from <= to => Ok([from, to]),
        _ => Err("FROM and TO are whole numbers in ascending order".into()),
    }
}

fn float(text: &str) -> Result<DType, String> {
    one_of(text, &DType::FLOATS.map(|dtype| (dtype.name(), dtype)))
}

impl ShapeArgs {
    /// Returns the tasks, those of the `default` shapes if none was given.
    pub(crate) fn tasks(&self, default: &[&str]) -> Result<Vec<Task>, Failure> {
        let default = default.iter().map(|text| shape(text).map_err(Failure::Input));
        let shapes = if self.shape.is_empty() { default.collect::<Result<_, _>>()? } else { self.shape.clone() };
        shapes.into_iter().map(|dims| self.task(dims)).collect()
    }

    fn task(&self, dims: Dims) -> Result<Task, Failure> {
        let mut task = Task::new(dims, self.dtype, self.causal);
        for term in &self.term {
            task.problem.add_term(term).map_err(|error| Failure::at(format!("--term {term}"), error))?;
        }
        (task.problem.bias, task.constant_bias) = (self.bias, self.constant_bias);
        if let Some([from, to]) = self.kv_lengths {
            let mut random = fastrand::Rng::with_seed(4);
            task.problem.visibility.kv_lengths = true;
            task.kv_lengths = (0..dims.batch).map(|_| random.u32(from..=to)).collect();
            if to as usize > dims.seq_len_kv {
                return Err(Failure::at(format!("--kv-lengths {from}..{to}"), format!("the shape has {} keys", dims.seq_len_kv)));
            }
        }
        task.problem.check().map_err(|error| Failure::at(&task, error))?;
        Ok(task)
    }
}

/// True if a term's word stands for an array.
pub(super) fn needs_data(word: &str) -> bool {
    term_words().any(|term| term.needs_data && word.split('=').next() == Some(term.word))
}

/// One problem to time.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Name in the suite, else the shape.
    pub(super) name: String,
    pub(crate) problem: Problem,
    /// True if the gradients of query, key and value are computed too.
    pub(super) backward: bool,
    /// Terms in WGSL, in words, and their tables.
    pub(super) own_terms: Vec<String>,
    pub(super) term_tables: Vec<u32>,
    /// Keys of each item, if it has a number of its own.
    pub(super) kv_lengths: Vec<u32>,
    /// True if the gradient of the bias is not wanted.
    constant_bias: bool,
}

impl Task {
    fn new(dims: Dims, dtype: DType, causal: bool) -> Self {
        let mut problem = Problem::new(dims).stored(dtype, Layout::Bhsd);
        if causal {
            problem = problem.aligned(Alignment::BottomRight).causal();
        }
        let (own_terms, term_tables, kv_lengths) = Default::default();
        Self { name: shape_text(&dims), problem, backward: false, own_terms, term_tables, kv_lengths, constant_bias: false }
    }

    /// Adds terms in WGSL. The last row stands at the last key, if nothing says otherwise.
    pub(crate) fn add(&mut self, terms: &UserTerms) -> Result<(), Failure> {
        terms.add_to(&mut self.problem);
        if self.problem.uses_position() {
            self.problem.visibility.alignment.get_or_insert(Alignment::BottomRight);
        }
        (self.own_terms, self.term_tables) = (terms.described(), terms.table_words(&self.problem)?);
        Ok(self.problem.check()?)
    }

    /// Names of all terms: those of the library, the items' own lengths, then those in WGSL.
    fn terms(&self) -> Vec<String> {
        let lengths =
            self.kv_lengths.iter().min().zip(self.kv_lengths.iter().max()).map(|(least, most)| format!("kv_lengths={least}..{most}"));
        self.problem.terms_text().into_iter().chain(lengths).chain(self.own_terms.iter().cloned()).collect()
    }

    /// Parses a line of the suite: a name, a shape, and terms that need no data.
    fn read(line: &str, dtype: DType) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(name), Some(shape)) = (words.next(), words.next()) else { return Err("needs a name and a shape".into()) };
        let mut task = Self { name: name.into(), ..Self::new(self::shape(shape)?, dtype, false) };
        for word in words {
            if needs_data(word) {
                return Err(format!("`{word}` needs data, which a suite does not have"));
            }
            task.problem.add_term(word).map_err(|error| error.to_string())?;
        }
        task.problem.check().map_err(|error| error.to_string())?;
        Ok(task)
    }

    /// Returns the tasks of the suite that `wanted` names: one, or all whose names begin so.
    pub(super) fn suite(wanted: &[String], dtype: DType) -> Result<Vec<Self>, String> {
        let lines = SUITE.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let tasks: Vec<Self> =
            lines.map(|line| Self::read(line, dtype).map_err(|why| format!("{line}: {why}"))).collect::<Result<_, _>>()?;
        for part in wanted {
            if !tasks.iter().any(|task| task.name.starts_with(part.as_str())) {
                let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
                return Err(format!("no shape is called `{part}`; there are {}", names.join(" ")));
            }
        }
        let is_name = |part: &str| tasks.iter().any(|task| task.name == part);
        let exact: Vec<bool> = wanted.iter().map(|part| is_name(part)).collect();
        let wants =
            |name: &str| wanted.iter().zip(&exact).any(|(part, &exact)| if exact { name == part } else { name.starts_with(part.as_str()) });
        Ok(tasks.into_iter().filter(|task| wants(&task.name)).collect())
    }

    /// The gradients that are timed.
    pub(super) fn want(&self) -> WantGradients {
        WantGradients { bias: self.problem.bias.is_some() && !self.constant_bias, ..Default::default() }
    }

    /// Returns the maximum number of keys visible to a row, if there is a window.
    pub(super) fn window(&self) -> Option<usize> {
        self.problem.visibility.window_left.map(|left| left as usize + 1)
    }

    /// Describes the task for records and peers.
    pub(super) fn describe(&self) -> Value {
        let Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, .. } = self.problem.dims;
        json!({
            "shape": [batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim], "causal": self.problem.visibility.causal,
            "window": self.window(), "terms": self.terms(), "dtype": self.problem.query.dtype.name(),
            "backward": self.backward, "bf16_weights": self.problem.allow_bf16_weights, "threads": rayon::current_num_threads(),
        })
    }

    /// Returns the operation count: 4 * B * H * D for each pair of a row and a key in its interval. Forward and backward
    /// count 3.5 times as many: two products and five.
    pub(super) fn flops(&self) -> f64 {
        let d = self.problem.dims;
        let pairs = |keys: usize| -> f64 {
            let problem = Problem { dims: Dims { seq_len_kv: keys, ..d }, ..self.problem.clone() };
            problem.interval_lengths().map(|keys| keys as f64).sum()
        };
        let of_lengths = self.kv_lengths.iter().map(|&keys| pairs(keys as usize)).sum::<f64>() / d.batch as f64;
        let pairs = if self.kv_lengths.is_empty() { pairs(d.seq_len_kv) } else { of_lengths };
        let passes = if self.backward { 3.5 } else { 1.0 };
        passes * Dims { seq_len_q: 1, seq_len_kv: 1, ..d }.flops() * pairs
    }

    /// Returns the bytes of query, key, value and output, which is the least that has to move.
    pub(super) fn bytes(&self) -> f64 {
        let (problem, d) = (&self.problem, &self.problem.dims);
        let keys = self.kv_lengths.iter().map(|&keys| f64::from(keys)).sum::<f64>() / (d.batch * d.seq_len_kv) as f64;
        let share = if self.kv_lengths.is_empty() { 1.0 } else { keys };
        let [query, key, value, output] = bytes_of(problem);
        query + share * (key + value) + output
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = shape_text(&self.problem.dims);
        if self.name != shape {
            write!(f, "{}: ", self.name)?;
        }
        f.write_str(&shape)?;
        if self.backward {
            f.write_str(", forward and backward")?;
        }
        for term in self.terms() {
            write!(f, ", {term}")?;
        }
        write!(f, ", {}", self.problem.query.dtype)?;
        if self.problem.allow_bf16_weights {
            f.write_str(", bf16 weights")?;
        }
        Ok(())
    }
}

pub(super) fn shape_text(dims: &Dims) -> String {
    let Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, .. } = dims;
    format!("{batch},{num_heads},{num_kv_heads},{seq_len_q},{seq_len_kv},{head_dim}")
}

/// Bytes of query, key, value and output, together.
pub(super) fn bytes(problem: &Problem) -> f64 {
    bytes_of(problem).iter().sum()
}

/// Bytes of query, key, value and output.
fn bytes_of(problem: &Problem) -> [f64; 4] {
    let lens = [problem.query_len(), problem.key_len(), problem.value_len(), problem.output_len()];
    lens.map(|len| problem.query.dtype.bytes(len) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_reads() {
        let all = Task::suite(&[String::new()], DType::F32).expect("the suite is well formed");
        let mut names: Vec<&str> = all.iter().map(|task| task.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len(), "each name once");
        assert!(all.iter().all(|task| task.problem.check().is_ok()));
        assert!(Task::suite(&["no such".into()], DType::F32).is_err());
        let count = |part: &str| Task::suite(&[part.into()], DType::F32).map_or(0, |tasks| tasks.len());
        assert_eq!([count("prefill-2048"), count("prefill-204")], [1, 2]);
        assert!(Task::read("x 1,1,1,8,8,4 windows=3", DType::F32).is_err());
        assert!(Task::read("x 1,1,1,8,8,4 window=3,0", DType::F32).is_err(), "rows have no positions");
        assert!(Task::read("x 1,1,1,8,8,4 segments", DType::F32).is_err(), "there are no segment ids");
        let window = Task::read("x 1,1,1,8,8,4 causal=top-left window=2,0", DType::F16).expect("well formed");
        assert_eq!((window.window(), window.flops()), (Some(3), 4.0 * (1.0 + 2.0 + 6.0 * 3.0) * 4.0));
        let lengths = Task { kv_lengths: vec![3, 5], ..Task::read("x 2,1,1,1,8,4", DType::F32).expect("well formed") };
        assert_eq!((lengths.flops(), lengths.bytes()), (4.0 * 4.0 * 8.0, 4.0 * 4.0 * (2.0 + 2.0 * 8.0 + 2.0)));
    }
}
