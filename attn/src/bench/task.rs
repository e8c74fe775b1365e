//! Problems to time: shapes given one by one, or those of the suite.

use std::fmt;

use serde_json::{Value, json};
use wgpu_attention::{Alignment, DType, Dims, Layout, Problem, term_words};

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
    /// Storage type of query, key, value and output: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = float)]
    pub(super) dtype: DType,
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
}

impl Task {
    fn new(dims: Dims, dtype: DType, causal: bool) -> Self {
        let mut problem = Problem::new(dims).stored(dtype, Layout::Bhsd);
        if causal {
            problem = problem.aligned(Alignment::BottomRight).causal();
        }
        Self { name: shape_text(&dims), problem, backward: false, own_terms: Vec::new(), term_tables: Vec::new() }
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

    /// Names of all terms: those of the library, then those in WGSL.
    fn terms(&self) -> Vec<String> {
        self.problem.terms_text().into_iter().chain(self.own_terms.iter().cloned()).collect()
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
        let d = &self.problem.dims;
        let pairs: f64 = self.problem.interval_lengths().map(|keys| keys as f64).sum();
        let passes = if self.backward { 3.5 } else { 1.0 };
        passes * Dims { seq_len_q: 1, seq_len_kv: 1, ..*d }.flops() * pairs
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

/// Returns the bytes of query, key, value and output, which is the least that has to move.
pub(super) fn bytes(problem: &Problem) -> f64 {
    let numbers = [problem.query_len(), problem.key_len(), problem.value_len(), problem.output_len()];
    numbers.iter().map(|&len| problem.query.dtype.bytes(len) as f64).sum()
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
    }
}
