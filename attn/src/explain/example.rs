//! Data to explain: the words, their embeddings and the weight matrices.

use crate::bench::unit;
use crate::failure::Failure;

/// Sentence of the worked example, whose embeddings are chosen by hand.
pub(crate) const SENTENCE: &str = "She wants to deadlift heavy weights";

const EMBEDDINGS: [(&str, [f32; 3]); 5] = [
    ("She", [1.0, 0.0, 0.0]),
    ("wants", [0.0, 1.0, 0.0]),
    ("deadlift", [1.0, 1.0, 1.0]),
    ("heavy", [0.0, 0.0, 1.0]),
    ("weights", [1.0, 0.0, 1.0]),
];

/// Width of made-up embeddings.
const WIDTH: usize = 8;
/// Number of heads that made-up embeddings are split into.
const HEADS: usize = 2;
/// Maximum number of words; nobody reads a larger table.
pub(super) const MOST_WORDS: usize = 64;

/// Inputs of attention for a sentence. Matrices are row-major; weights are [width, width], multiplied from the right.
#[derive(Default)]
pub(super) struct Example {
    /// Sentence as given.
    pub(super) sentence: String,
    /// Words that have an embedding.
    pub(super) tokens: Vec<String>,
    /// Words without an embedding.
    pub(super) omitted: Vec<String>,
    /// Origin of the numbers, as a text to print.
    pub(super) origin: &'static str,
    /// True for the worked example, where W_Q = W_K = W_V = W_O = identity.
    pub(super) worked: bool,
    pub(super) width: usize,
    pub(super) heads: usize,
    /// [tokens, width], like query, key and value.
    pub(super) embeddings: Vec<f32>,
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
    pub(super) output_weight: Vec<f32>,
}

impl Example {
    pub(super) fn new(sentence: &str) -> Result<Self, Failure> {
        let words: Vec<String> = sentence.split_whitespace().map(word).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            return Err(Failure::input("the sentence has no words"));
        }
        if words.len() > MOST_WORDS {
            return Err(Failure::input(format!("the sentence has {} words; explain shows up to {MOST_WORDS}", words.len())));
        }
        let is_worked = words.len() == SENTENCE.split(' ').count()
            && words.iter().zip(SENTENCE.split(' ')).all(|(word, known)| word.eq_ignore_ascii_case(known));
        if !is_worked {
            return Ok(Self::made_up(sentence, words));
        }
        let embeddings = EMBEDDINGS.iter().flat_map(|(_, row)| *row).collect();
        let identity = |_: &str| vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let mut example = Self::projected(sentence, embeddings, [3, 3], identity);
        example.tokens = EMBEDDINGS.iter().map(|(word, _)| (*word).to_string()).collect();
        example.omitted = vec!["to".to_string()];
        example.origin = "Three numbers per word, chosen by hand to be checked by hand; W_Q, W_K, W_V and W_O are the identity.";
        example.worked = true;
        Ok(example)
    }

    fn made_up(sentence: &str, tokens: Vec<String>) -> Self {
        let drawn = |text: &str, count: usize| {
            // FNV-1a, the same on every platform.
            let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            let mut random = fastrand::Rng::with_seed(hash);
            (0..count).map(move |_| unit(&mut random))
        };
        let embedding = |token: &String| drawn(&token.to_lowercase(), WIDTH).map(|x| (x * 10.0).round() / 10.0);
        let embeddings = tokens.iter().flat_map(embedding).collect();
        let weight = |name: &str| drawn(name, WIDTH * WIDTH).collect();
        let origin = "Made up: eight numbers from a hash of each word, and fixed pseudo-random W_Q, W_K, W_V, W_O. \
                      They show the arithmetic and mean nothing. \
                      Nothing was learned and no position is encoded: equal words have equal rows.";
        Self { tokens, origin, ..Self::projected(sentence, embeddings, [WIDTH, HEADS], weight) }
    }

    /// Projects the embeddings by the weights W_Q, W_K and W_V.
    fn projected(sentence: &str, embeddings: Vec<f32>, [width, heads]: [usize; 2], weight: impl Fn(&str) -> Vec<f32>) -> Self {
        let [query, key, value] = ["W_Q", "W_K", "W_V"].map(|name| times(&embeddings, &weight(name), width));
        let (sentence, output_weight) = (sentence.to_string(), weight("W_O"));
        Self { sentence, width, heads, embeddings, query, key, value, output_weight, ..Self::default() }
    }

    /// Returns the row to follow: that of the `wanted` word, else that of the longest.
    pub(super) fn focus(&self, wanted: Option<&str>) -> Result<usize, Failure> {
        let longest = (0..self.tokens.len()).rev().max_by_key(|&at| self.tokens[at].chars().count());
        Ok(position(&self.tokens, wanted)?.or(longest).unwrap_or(0))
    }
}

/// Returns the place of the token that --focus names, if it names one.
pub(super) fn position(tokens: &[String], wanted: Option<&str>) -> Result<Option<usize>, Failure> {
    let Some(wanted) = wanted else { return Ok(None) };
    let found = tokens.iter().position(|token| token.eq_ignore_ascii_case(wanted));
    found.map(Some).ok_or_else(|| Failure::at("--focus", format!("no token `{}`, only {}", printable(wanted), tokens.join(", "))))
}

/// Strips surrounding punctuation.
fn word(text: &str) -> String {
    printable(text.trim_matches(|c: char| c.is_ascii_punctuation() || c.is_control()))
}

/// Strips control characters, which a terminal would act upon.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Computes `rows . weight`: [n, width] times [width, width].
pub(super) fn times(rows: &[f32], weight: &[f32], width: usize) -> Vec<f32> {
    let mut product = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(width) {
        product.extend((0..width).map(|column| row.iter().zip(weight.chunks_exact(width)).map(|(x, w)| x * w[column]).sum::<f32>()));
    }
    product
}
