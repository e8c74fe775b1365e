//! `attn explain --visible`: which pairs a mask shows, what becomes of their scores, and what of it kernels skip.

use std::io::Write;

use serde_json::{Value, json};
use wgpu_attention::cpu::Tiles;
use wgpu_attention::{Alignment, Dims, Engine, Inputs, Problem, Returns, ScoreStage, Term};

use super::mask_counts::{Head, Tile};
use super::{Args, mask_svg, write_picture};
use crate::backend;
use crate::bench::shape;
use crate::failure::Failure;
use crate::run::BuiltInArgs;
use crate::terminal::{Terminal, number};
use crate::user_terms::TermArgs;

/// Most scores that are computed at once: 1 GiB.
const MOST_PAIRS: usize = 1 << 28;
/// Scores before and after are drawn from minus this to this.
pub(super) const CURVE: f32 = 60.0;

/// Options of a mask's picture.
#[derive(clap::Args, Debug)]
pub(super) struct MaskArgs {
    #[command(flatten, next_help_heading = "A mask or a change of scores, instead of a sentence")]
    terms: TermArgs,
    #[command(flatten)]
    built_ins: BuiltInArgs,
    /// Batch, query heads, key/value heads, queries, keys, head_dim [default: 1,1,1,128,128,64]
    #[arg(long, value_name = "B,H,HKV,LQ,LK,D", value_parser = shape, help_heading = "The mask's picture")]
    shape: Option<Dims>,
    /// Positions of the rows, if something counts from them [default: that of --causal, else bottom-right]
    #[arg(long, value_name = "top-left|bottom-right|OFFSET", value_parser = str::parse::<Alignment>, allow_negative_numbers = true, help_heading = "The mask's picture")]
    align: Option<Alignment>,
    /// Item to draw, from 0 [default: 0]
    #[arg(long, value_name = "N", help_heading = "The mask's picture")]
    batch: Option<usize>,
    /// Head to draw, from 0 [default: 0]
    #[arg(long, value_name = "N", help_heading = "The mask's picture")]
    head: Option<usize>,
    /// Size of the tiles [default: 64,64, as in most kernels]
    #[arg(long, value_name = "ROWS,KEYS", value_parser = tile, help_heading = "The mask's picture")]
    tile: Option<[usize; 2]>,
    /// Score whose change is shown [default: 0]
    #[arg(long, value_name = "X", value_parser = finite, allow_hyphen_values = true, help_heading = "The mask's picture")]
    x: Option<f32>,
}

fn tile(text: &str) -> Result<[usize; 2], String> {
    let sizes: Option<Vec<usize>> = text.split(',').map(|size| size.trim().parse().ok().filter(|&size| size > 0)).collect();
    sizes.and_then(|sizes| sizes.try_into().ok()).ok_or("say two whole numbers from 1 on, ROWS,KEYS".into())
}

fn finite(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|x: &f32| x.is_finite()).ok_or("say a finite number".into())
}

impl MaskArgs {
    /// True if a mask or a change of scores is given.
    pub(super) fn is_given(&self) -> bool {
        !self.terms.is_empty() || self.built_ins.is_given()
    }

    /// Name of an option that needs a mask, if one is given.
    pub(super) fn other_option(&self) -> Option<&'static str> {
        let Self { shape, align, batch, head, tile, x, .. } = self;
        let given = [
            ("--shape", shape.is_some()),
            ("--align", align.is_some()),
            ("--batch", batch.is_some()),
            ("--head", head.is_some()),
            ("--tile", tile.is_some()),
            ("--x", x.is_some()),
        ];
        given.into_iter().find(|given| given.1).map(|given| given.0)
    }
}

/// A mask, pair by pair, and what kernels make of it.
pub(super) struct Mask {
    pub(super) title: String,
    pub(super) dims: Dims,
    /// Size of a tile: rows and keys.
    pub(super) tile: [usize; 2],
    /// Score before the terms.
    pub(super) x: f32,
    /// Place of the head that is drawn, in `heads`.
    pub(super) drawn: usize,
    /// Heads of all items.
    pub(super) heads: Vec<Head>,
    /// Scores after the terms, [items * heads, rows, keys]; -inf where masked.
    scores: Vec<f32>,
    /// Scores after the terms by the score before, for each head, where they depend on nothing else.
    pub(super) curves: Option<Vec<Vec<[f32; 2]>>>,
}

pub(super) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let mask = compute(&args.mask, &backend::open(&args.backend.backend)?)?;
    write_picture(args, || mask_svg::draw(&mask))?;
    if args.json {
        return Ok(terminal.json(&as_json(&mask), true)?);
    }
    tell(terminal, &mask)
}

fn compute(args: &MaskArgs, engine: &Engine) -> Result<Mask, Failure> {
    let dims = args.shape.unwrap_or(Dims::self_attention(1, 1, 128, 64));
    let mut problem = Problem::new(Dims { head_dim: 1, head_dim_v: 1, ..dims });
    problem.scale = Some(1.0);
    args.built_ins.add_to(&mut problem)?;
    let terms = args.terms.read()?;
    terms.add_to(&mut problem);
    align(&mut problem, args.align)?;
    let place = |option: &str, given: Option<usize>, count: usize| match given.unwrap_or(0) {
        at if at < count => Ok(at),
        at => Err(Failure::at(format!("{option} {at}"), format!("there are {count} in --shape, counted from 0"))),
    };
    let (batch, head) = (place("--batch", args.batch, dims.batch)?, place("--head", args.head, dims.num_heads)?);
    let pairs = dims.scores_shape().into_iter().fold(1usize, usize::saturating_mul);
    if pairs > MOST_PAIRS {
        return Err(Failure::at("--shape", format!("has {pairs} pairs in all heads; up to {MOST_PAIRS} are drawn and counted")));
    }
    let mut title: Vec<String> = problem.terms_text();
    title.extend(terms.titles());

    let tables = terms.table_words(&problem)?;
    let (x, tile) = (args.x.unwrap_or(0.0), args.tile.unwrap_or([64, 64]));
    let scores = scores(engine, &problem, &tables, |_| x)?;
    let zeros = vec![0.0; problem.query_len().max(problem.key_len())];
    let inputs = Inputs {
        term_tables: &tables,
        ..Inputs::new(&zeros[..problem.query_len()], &zeros[..problem.key_len()], &zeros[..problem.key_len()])
    };
    let tiles = Tiles::new(&problem, &inputs)?;
    let per_head = dims.seq_len_q * dims.seq_len_kv;
    let heads: Vec<Head> = scores
        .chunks(per_head)
        .enumerate()
        .map(|(at, scores)| {
            let status = |rows, keys| tiles.status(at / dims.num_heads, at % dims.num_heads, rows, keys);
            Head::of(scores, &dims, tile, x, status)
        })
        .collect();
    let changes_scores = problem.softcap.is_some() || problem.user_terms.iter().any(Term::has_score);
    let hides = heads.iter().any(|head| head.visible < head.pairs);
    let curves = if changes_scores && !hides { curves(engine, &problem, &tables)? } else { None };
    Ok(Mask { title: title.join(" + "), dims, tile, x, drawn: batch * dims.num_heads + head, heads, scores, curves })
}

fn align(problem: &mut Problem, align: Option<Alignment>) -> Result<(), Failure> {
    match (align, problem.visibility.alignment) {
        (Some(_), Some(said)) => Err(Failure::at("--align", format!("--causal says where the rows stand: {said:?}"))),
        (Some(_), None) if !problem.uses_position() => {
            Err(Failure::at("--align", "no option counts from the rows' positions: leave it out"))
        }
        (given, None) if problem.uses_position() => {
            problem.visibility.alignment = Some(given.unwrap_or(Alignment::BottomRight));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Computes the scores of all pairs, -inf where masked, from a score before the terms that may depend on the row.
fn scores(engine: &Engine, problem: &Problem, tables: &[u32], before: impl Fn(usize) -> f32) -> Result<Vec<f32>, Failure> {
    let rows = problem.dims.seq_len_q;
    let query: Vec<f32> = (0..problem.query_len()).map(|at| before(at % rows)).collect();
    let key = vec![1.0; problem.key_len()];
    let mut problem = problem.clone();
    problem.want = Returns { scores: Some(ScoreStage::Masked), ..Returns::default() };
    let inputs = Inputs { term_tables: tables, ..Inputs::new(&query, &key, &key) };
    let outputs = engine.attention(&problem, &inputs)?;
    outputs.scores.ok_or_else(|| Failure::Check(format!("{} returned no scores", engine.chosen())))
}

/// Computes the score after the terms by the score before, for each head. `None` where it depends on row or key, or if
/// the rows are too few for a curve.
fn curves(engine: &Engine, problem: &Problem, tables: &[u32]) -> Result<Option<Vec<Vec<[f32; 2]>>>, Failure> {
    let (rows, keys) = (problem.dims.seq_len_q, problem.dims.seq_len_kv);
    let before = |row: usize| CURVE * (2.0 * row as f32 / (rows.max(2) - 1) as f32 - 1.0);
    // The value of the visible ones of some scores, if they have one.
    let common = |scores: &[f32]| {
        let mut visible = scores.iter().filter(|&&score| score != f32::NEG_INFINITY);
        let first = *visible.next()?;
        visible.all(|&score| score == first).then_some(first)
    };
    if rows < 32 || scores(engine, problem, tables, |_| 1.0)?.chunks(rows * keys).any(|head| common(head).is_none()) {
        return Ok(None);
    }
    let after = scores(engine, problem, tables, before)?;
    let curve = |head: &[f32]| head.chunks(keys).enumerate().map(|(row, scores)| Some([before(row), common(scores)?])).collect();
    Ok(after.chunks(rows * keys).map(curve).collect())
}

impl Mask {
    /// Number of tiles down and across.
    pub(super) fn grid(&self) -> [usize; 2] {
        [self.dims.seq_len_q.div_ceil(self.tile[0]), self.dims.seq_len_kv.div_ceil(self.tile[1])]
    }

    /// Scores after the terms of the head that is drawn.
    pub(super) fn scores(&self) -> &[f32] {
        &self.scores[self.drawn * self.dims.seq_len_q * self.dims.seq_len_kv..][..self.dims.seq_len_q * self.dims.seq_len_kv]
    }

    pub(super) fn head(&self) -> &Head {
        &self.heads[self.drawn]
    }

    /// Least and greatest change of a visible score, if some score changes.
    pub(super) fn change(&self) -> Option<[f32; 2]> {
        self.head().change.filter(|change| *change != [0.0; 2])
    }

    /// Name of the head that is drawn; empty if there is one only.
    pub(super) fn place(&self) -> String {
        let (batch, head) = (self.drawn / self.dims.num_heads, self.drawn % self.dims.num_heads);
        match (self.dims.batch, self.dims.num_heads) {
            (1, 1) => String::new(),
            (1, _) => format!("head {head}"),
            _ => format!("batch {batch}, head {head}"),
        }
    }
}

fn tell(terminal: &mut Terminal, mask: &Mask) -> Result<(), Failure> {
    let [rows, keys] = mask.tile;
    let title = terminal.bold(&mask.title);
    writeln!(terminal, "{title}: {} queries, {} keys, tiles of {rows} x {keys}", mask.dims.seq_len_q, mask.dims.seq_len_kv)?;
    let line = |name: &str, head: &Head| {
        let [skipped, whole, tested] = head.shares();
        let change = head
            .change
            .map_or("none visible".into(), |[least, most]| if least == most { format!("{least}") } else { format!("{least} to {most}") });
        format!("{name}\t{}\t{skipped}\t{whole}\t{tested}\t{}\t{change}", head.density(), head.share(&[Tile::Empty]))
    };
    let mut lines = vec![format!("\tvisible\tskipped\twhole\ttested\tin vain\tchange at x = {}", mask.x)];
    if mask.heads.len() > 1 {
        lines.push(line(&mask.place(), mask.head()));
    }
    lines.push(line("all", &Head::sum(&mask.heads)));
    if mask.heads.iter().all(|head| head.change.is_none_or(|change| change == [0.0; 2])) {
        lines.iter_mut().for_each(|line| line.truncate(line.rfind('\t').unwrap_or(line.len())));
    }
    Ok(terminal.table(2, &lines)?)
}

fn as_json(mask: &Mask) -> Value {
    let head = |head: &Head| {
        let share = |wanted: &[Tile]| head.count(wanted) as f64 / head.tiles.len().max(1) as f64;
        json!({
            "visible": head.visible, "pairs": head.pairs, "density": head.visible as f64 / head.pairs.max(1) as f64,
            "tiles": {
                "all": head.tiles.len(), "skipped": head.count(&[Tile::Skipped]), "whole": head.count(&[Tile::Whole]),
                "tested": head.count(&[Tile::Tested, Tile::Empty]), "tested_in_vain": head.count(&[Tile::Empty]),
                "skipped_share": share(&[Tile::Skipped]), "whole_share": share(&[Tile::Whole]),
                "tested_share": share(&[Tile::Tested, Tile::Empty]),
            },
            "change": head.change.map(|change| change.map(number)),
        })
    };
    let named = |(at, it): (usize, &Head)| {
        let mut line = head(it);
        (line["batch"], line["head"]) = (json!(at / mask.dims.num_heads), json!(at % mask.dims.num_heads));
        line
    };
    json!({
        "title": mask.title, "seq_len_q": mask.dims.seq_len_q, "seq_len_kv": mask.dims.seq_len_kv,
        "tile": { "rows": mask.tile[0], "keys": mask.tile[1] }, "x": number(mask.x),
        "all": head(&Head::sum(&mask.heads)), "heads": mask.heads.iter().enumerate().map(named).collect::<Vec<_>>(),
    })
}
