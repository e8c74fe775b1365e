//! A small attention model learns associative recall: `cargo run --release --example train [-- BACKEND..]`.
//!
//! Each sequence holds pairs of a key and a value, one token per pair, and asks for the value of each key in another
//! order, which only attention can find. The model has embeddings, one multi-head layer with dropout, and logits over
//! the values; Adam trains it with the layer's own gradients. With several backends, each trains from the same start on
//! the same data, and train.svg shows their loss curves. The curves differ only because sums are rounded in another
//! order: a few 1e-7 per step, which training amplifies. Every backend drops the same weights.
#![expect(clippy::print_stdout, reason = "it prints")]

use std::fmt::Write;
use std::time::Instant;

use clap::Parser;
use wgpu_attention::layer::{Linear, LinearGradients, MultiHead};
use wgpu_attention::{Cause, Dropout, Engine, EngineOptions, Error, Inputs, Result};

const STEPS: usize = 300;
const BATCH: usize = 32;
/// Pairs per sequence; `SYMBOLS` counts the distinct keys, and the distinct values.
const PAIRS: usize = 12;
const SYMBOLS: usize = 24;
const WIDTH: usize = 48;
const HEADS: usize = 4;
const LEARNING_RATE: f32 = 0.004;

/// Train a small attention model on associative recall; the loss curve of each backend goes to train.svg
#[derive(Parser)]
#[command(after_help = "Example: cargo run --release --example train -- cpu vulkan")]
struct Args {
    /// Where to train: auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name
    #[arg(value_name = "BACKEND", default_value = "auto", value_parser = open)]
    engines: Vec<Engine>,
}

fn open(name: &str) -> Result<Engine> {
    Engine::new(EngineOptions { backend: name.parse()?, ..Default::default() })
}

fn main() -> Result<()> {
    let mut curves = Vec::new();
    for engine in Args::parse().engines {
        println!("on {} ({})", engine.chosen(), engine.why());
        curves.push((engine.chosen().to_string(), train(&engine)?));
    }
    if let [(_, first), others @ ..] = &curves[..] {
        for (name, losses) in others {
            let apart = |steps: usize| first.iter().zip(losses).take(steps).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("loss on {name} against the first: at most {:.1e} apart in 20 steps, {:.1e} in all", apart(20), apart(STEPS));
        }
    }
    std::fs::write("train.svg", draw(&curves)).map_err(|error| Error::file("train.svg", Cause::new(error)))?;
    println!("the curves are in train.svg");
    Ok(())
}

/// Trains a model and returns its loss at each step.
fn train(engine: &Engine) -> Result<Vec<f32>> {
    let mut random = Random(1);
    let mut model = Model::new(&mut random);
    let started = Instant::now();
    let mut losses = Vec::with_capacity(STEPS);
    for step in 0..STEPS {
        let batch = Batch::draw(&mut random);
        let (loss, right) = model.step(engine, &batch, step)?;
        losses.push(loss);
        if step % 25 == 0 || step + 1 == STEPS {
            println!("step {step:4}  loss {loss:.4}  {:5.1} % recalled  {:.1} s", 100.0 * right, started.elapsed().as_secs_f64());
        }
    }
    Ok(losses)
}

/// Sequences: pairs in order of appearance, and keys in the order in which they are asked for.
struct Batch {
    keys: Vec<usize>,
    values: Vec<usize>,
    asked: Vec<usize>,
    answers: Vec<usize>,
}

impl Batch {
    fn draw(random: &mut Random) -> Self {
        let mut batch = Self { keys: vec![], values: vec![], asked: vec![], answers: vec![] };
        for _ in 0..BATCH {
            let keys = random.permutation(SYMBOLS);
            let values: Vec<usize> = (0..PAIRS).map(|_| random.below(SYMBOLS)).collect();
            for at in random.permutation(PAIRS) {
                batch.asked.push(keys[at]);
                batch.answers.push(values[at]);
            }
            batch.keys.extend(&keys[..PAIRS]);
            batch.values.extend(values);
        }
        batch
    }
}

/// Learned parameters, and Adam's moments of their gradients.
struct Weights {
    elements: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Weights {
    fn new(len: usize, spread: f32, random: &mut Random) -> Self {
        let elements = (0..len).map(|_| spread * (2.0 * random.unit() - 1.0)).collect();
        Self { elements, mean: vec![0.0; len], square: vec![0.0; len] }
    }

    /// One step of Adam (Kingma and Ba, 2015).
    fn learn(&mut self, gradient: &[f32], step: usize) {
        let (b1, b2) = (0.9f32, 0.99f32);
        let (c1, c2) = (1.0 - b1.powi(step as i32 + 1), 1.0 - b2.powi(step as i32 + 1));
        for (((x, m), v), &g) in self.elements.iter_mut().zip(&mut self.mean).zip(&mut self.square).zip(gradient) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *x -= LEARNING_RATE * (*m / c1) / ((*v / c2).sqrt() + 1e-8);
        }
    }
}

struct Model {
    /// Embeddings of keys and of values, and the output table of the logits, each [SYMBOLS, WIDTH].
    keys: Weights,
    values: Weights,
    logits: Weights,
    /// Weight and bias of Q, K, V and O.
    projections: [(Weights, Weights); 4],
}

impl Model {
    fn new(random: &mut Random) -> Self {
        let spread = 1.0 / (WIDTH as f32).sqrt();
        let mut table = || Weights::new(SYMBOLS * WIDTH, 1.0, random);
        let (keys, values, logits) = (table(), table(), table());
        let projections = [(); 4].map(|()| (Weights::new(WIDTH * WIDTH, spread, random), Weights::new(WIDTH, 0.0, random)));
        Self { keys, values, logits, projections }
    }

    /// Runs forward and backward and updates the weights. Returns the mean loss and the share of right answers.
    fn step(&mut self, engine: &Engine, batch: &Batch, step: usize) -> Result<(f32, f32)> {
        let row = |table: &Weights, at: usize| table.elements[at * WIDTH..(at + 1) * WIDTH].to_vec();
        let asked: Vec<f32> = batch.asked.iter().flat_map(|&key| row(&self.keys, key)).collect();
        let pairs: Vec<f32> = batch
            .keys
            .iter()
            .zip(&batch.values)
            .flat_map(|(&key, &value)| {
                row(&self.keys, key).into_iter().zip(row(&self.values, value)).map(|(k, v)| k + v).collect::<Vec<_>>()
            })
            .collect();
        let linear = |at: usize| {
            let (weight, bias) = &self.projections[at];
            Linear::new(weight.elements.clone(), Some(bias.elements.clone()), WIDTH)
        };
        let layer = MultiHead::new(linear(0)?, linear(1)?, linear(2)?, linear(3)?, HEADS, HEADS)?;
        let mut problem = layer.problem(BATCH, PAIRS, PAIRS);
        problem.dropout = Some(0.05);
        let inputs = Inputs { dropout: Dropout { seed: 7, offset: step as u32 }, ..Inputs::new(&asked, &pairs, &pairs) };
        let forward = layer.forward_with_steps(engine, &problem, &inputs)?;

        let (loss, right, d_output, d_logits) = self.loss(&forward.output, &batch.answers);
        let gradients = layer.backward(engine, &problem, &inputs, &forward, &d_output)?;

        // The gradient of an embedding is the sum over all tokens that it is part of.
        let (mut d_keys, mut d_values) = (vec![0.0; SYMBOLS * WIDTH], vec![0.0; SYMBOLS * WIDTH]);
        let add = |table: &mut [f32], at: usize, row: &[f32]| table[at * WIDTH..].iter_mut().zip(row).for_each(|(x, g)| *x += g);
        for (token, row) in gradients.query.chunks(WIDTH).enumerate() {
            add(&mut d_keys, batch.asked[token], row);
        }
        for pass in [&gradients.key, &gradients.value] {
            for (token, row) in pass.chunks(WIDTH).enumerate() {
                add(&mut d_keys, batch.keys[token], row);
                add(&mut d_values, batch.values[token], row);
            }
        }
        self.keys.learn(&d_keys, step);
        self.values.learn(&d_values, step);
        self.logits.learn(&d_logits, step);
        let of_projections = [gradients.w_q, gradients.w_k, gradients.w_v, gradients.w_o];
        for ((weight, bias), LinearGradients { weight: d_weight, bias: d_bias }) in self.projections.iter_mut().zip(of_projections) {
            weight.learn(&d_weight, step);
            bias.learn(&d_bias.unwrap_or_default(), step);
        }
        Ok((loss, right))
    }

    /// Returns the mean cross entropy of the answers, the share of right ones, d_output and the gradient of `logits`.
    fn loss(&self, output: &[f32], answers: &[usize]) -> (f32, f32, Vec<f32>, Vec<f32>) {
        let (mut loss, mut right) = (0.0, 0);
        let (mut d_output, mut d_table) = (vec![0.0; output.len()], vec![0.0; SYMBOLS * WIDTH]);
        let each = 1.0 / answers.len() as f32;
        for ((row, d_row), &answer) in output.chunks(WIDTH).zip(d_output.chunks_mut(WIDTH)).zip(answers) {
            let table = self.logits.elements.chunks(WIDTH);
            let logits: Vec<f32> = table.map(|column| row.iter().zip(column).map(|(x, y)| x * y).sum()).collect();
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
            loss += each * (max + sum.ln() - logits[answer]);
            right += usize::from(logits[answer] == max);
            for (symbol, logit) in logits.iter().enumerate() {
                let d_logit = each * ((logit - max).exp() / sum - f32::from(u8::from(symbol == answer)));
                let column = symbol * WIDTH..(symbol + 1) * WIDTH;
                d_row.iter_mut().zip(&self.logits.elements[column.clone()]).for_each(|(d, y)| *d += d_logit * y);
                d_table[column].iter_mut().zip(row).for_each(|(d, x)| *d += d_logit * x);
            }
        }
        (loss, right as f32 * each, d_output, d_table)
    }
}

/// Draws the curves as SVG, step from left to right, loss from bottom to top.
fn draw(curves: &[(String, Vec<f32>)]) -> String {
    let (width, height, margin) = (640.0, 400.0, 48.0);
    let top = curves.iter().flat_map(|(_, losses)| losses).copied().fold(0.1, f32::max);
    let x = |step: usize| margin + (width - 2.0 * margin) * step as f32 / (STEPS - 1) as f32;
    let y = |loss: f32| height - margin - (height - 2.0 * margin) * loss / top;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    let mut line = |text: String| {
        let _ = writeln!(svg, "{text}"); // writing to a String does not fail
    };
    line(format!("<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"));
    line(format!("<path d=\"M{margin} {margin}V{}H{}\" fill=\"none\" stroke=\"black\"/>", height - margin, width - margin));
    for part in 0..=4 {
        let (step, loss) = ((STEPS - 1) * part / 4, top * part as f32 / 4.0);
        line(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{step}</text>", x(step), height - margin + 16.0));
        line(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{loss:.2}</text>", margin - 6.0, y(loss) + 4.0));
    }
    line(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">loss by step: associative recall of {PAIRS} pairs</text>",
        width / 2.0,
        margin / 2.0
    ));
    for (index, (name, losses)) in curves.iter().enumerate() {
        let color = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"][index % 4];
        let dashes = if index == 0 { "" } else { " stroke-dasharray=\"4 4\"" };
        let points: String = losses.iter().enumerate().map(|(step, &loss)| format!("{:.1},{:.1} ", x(step), y(loss))).collect();
        line(format!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"{dashes}/>"));
        line(format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{color}\">{name}</text>",
            width - margin,
            margin + 16.0 * index as f32
        ));
    }
    svg + "</svg>\n"
}

/// SplitMix64 generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..len).collect();
        (1..len).rev().for_each(|last| all.swap(last, self.below(last + 1)));
        all
    }
}
