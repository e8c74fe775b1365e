//! A mask as a picture: its pairs, or what becomes of their scores, beside its tiles. The background stays clear and all
//! colours are of middle lightness, so that the picture reads on white and on black.

use std::ops::Range;

use unicode_width::UnicodeWidthStr;

use super::heatmap::shorten;
use super::mask::{CURVE, Mask};
use super::mask_counts::Tile;
use super::svg::{ADVANCE, FONT, Sheet, escape};

/// Ink of texts and axes.
const INK: &str = "#768390";
const BLUE: &str = "#2f81f7";
const AMBER: &str = "#d29922";
/// Ends and middle of the ramp of changes: scores that fall, that rise, that stay.
const FALLS: [f32; 3] = [214.0, 93.0, 40.0];
const RISES: [f32; 3] = [47.0, 129.0, 247.0];
const STAYS: [f32; 3] = [205.0, 214.0, 223.0];
/// Steps of the ramp from an end to the middle.
const STEPS: u8 = 6;
/// Longer side of a panel.
const SIDE: f32 = 272.0;
/// Most cells along a side of a panel.
const MOST_CELLS: usize = 136;
const LEFT: f32 = 58.0;
const TOP: f32 = 74.0;
const GAP: f32 = 30.0;

/// Cells of a panel.
struct Grid {
    /// Colour of each cell, row by row; 0 for none.
    cells: Vec<u8>,
    columns: usize,
    /// Cells across and down; the last ones may be cut.
    wide: f32,
    high: f32,
}

impl Grid {
    /// Divides rows and columns into at most [`MOST_CELLS`] cells a side and asks for the colour of each.
    fn new([rows, columns]: [usize; 2], colour: impl Fn([Range<usize>; 2]) -> u8) -> Self {
        let [down, across] = [rows, columns].map(|len| len.div_ceil(MOST_CELLS).max(1));
        let mut cells = Vec::new();
        for row in (0..rows).step_by(down) {
            for column in (0..columns).step_by(across) {
                cells.push(colour([row..rows.min(row + down), column..columns.min(column + across)]));
            }
        }
        let share = |len: usize, step: usize| len as f32 / step as f32;
        Self { cells, columns: columns.div_ceil(across), wide: share(columns, across), high: share(rows, down) }
    }

    /// Path of the cells of a colour, as few rectangles: runs of a row, joined down where the next row has the same one.
    fn path(&self, colour: u8) -> String {
        let mut open: Vec<[usize; 4]> = Vec::new();
        let mut path = String::new();
        let mut from = [0usize; 2];
        // Steps from the last rectangle are shorter than places.
        let mut close = |[x, y, wide, high]: [usize; 4]| {
            let [dx, dy] = [x as isize - from[0] as isize, y as isize - from[1] as isize];
            path += &format!("m{dx} {dy}h{wide}v{high}h-{wide}z");
            from = [x, y];
        };
        for (y, row) in self.cells.chunks(self.columns.max(1)).enumerate() {
            let (mut x, mut runs) = (0, Vec::new());
            for run in row.chunk_by(|a, b| (*a == colour) == (*b == colour)) {
                if run[0] == colour {
                    let above = open.iter().position(|&[left, top, wide, high]| [left, wide] == [x, run.len()] && top + high == y);
                    let [top, high] = above.map_or([y, 0], |at| [open[at][1], open.swap_remove(at)[3]]);
                    runs.push([x, top, run.len(), high + 1]);
                }
                x += run.len();
            }
            std::mem::replace(&mut open, runs).into_iter().for_each(&mut close);
        }
        open.into_iter().for_each(close);
        path
    }
}

/// Place of a panel.
#[derive(Clone, Copy)]
struct Frame {
    x: f32,
    wide: f32,
    high: f32,
}

/// Colour of a step of a change, 1 to `2 * STEPS + 1`: from falling scores over those that stay to rising ones.
fn ramp(step: u8) -> String {
    let share = (f32::from(step) - 1.0 - f32::from(STEPS)) / f32::from(STEPS);
    let end = if share < 0.0 { FALLS } else { RISES };
    let mix = |at: usize| (STAYS[at] * (1.0 - share.abs()) + end[at] * share.abs()).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

/// Step of a change, of which `most` is the largest.
fn step(change: f32, most: f32) -> u8 {
    let share = (change / most).clamp(-1.0, 1.0) * f32::from(STEPS);
    (share.round() + f32::from(STEPS)) as u8 + 1
}

/// Returns the picture as SVG.
pub(super) fn draw(mask: &Mask) -> String {
    let dims = &mask.dims;
    let longer = dims.seq_len_q.max(dims.seq_len_kv).max(1) as f32;
    let side = |len: usize| (SIDE * len as f32 / longer).max(24.0);
    let mut first = Frame { x: LEFT, wide: side(dims.seq_len_kv), high: side(dims.seq_len_q) };
    if mask.curves.is_some() {
        (first.wide, first.high) = (SIDE, SIDE);
    }
    let head = mask.head();
    // Legends need room below narrow panels, too.
    let second = Frame { x: LEFT + first.wide.max(170.0) + GAP, ..first };
    let hides = head.tiles.iter().any(|&tile| tile != Tile::Whole);

    let mut sheet = Sheet::default();
    match (&mask.curves, mask.change()) {
        (Some(curves), _) => draw_curves(&mut sheet, first, curves, mask.drawn),
        (None, Some(change)) => draw_change(&mut sheet, first, mask, change),
        (None, None) => draw_pairs(&mut sheet, first, mask),
    }
    let mut right = first.x + first.wide;
    if hides {
        right = draw_tiles(&mut sheet, second, mask).max(second.x + second.wide);
    }
    let ([skipped, whole, tested], [rows, keys]) = (head.shares(), mask.tile);
    let footer = match hides {
        true => format!("{} visible. Tiles of {rows} x {keys}: {skipped} skipped, {whole} whole, {tested} tested", head.density()),
        false => "All pairs are visible: no tile is skipped or tested".into(),
    };
    let height = TOP + first.high + 76.0;
    sheet.text([LEFT, height - 14.0], 12.0, INK, "", &footer);
    let title = shorten(&mask.title, 56);
    let widest = |text: &str, size: f32| LEFT + text.width() as f32 * size * ADVANCE;
    let width = right.max(widest(&footer, 12.0)).max(widest(&title, 16.0)) + 14.0;

    let place = mask.place();
    let sizes = format!("{}{}{} queries, {} keys", place, if place.is_empty() { "" } else { ": " }, dims.seq_len_q, dims.seq_len_kv);
    let mut whole = Sheet::default();
    let size = format!(r#"width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}""#);
    whole.line(&format!(r#"<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}">"#));
    whole.line(&format!("<title>{}</title>\n<desc>{}</desc>", escape(&title), escape(&footer)));
    whole.text([LEFT, 24.0], 16.0, INK, r#"font-weight="600""#, &title);
    whole.text([LEFT, 43.0], 12.0, INK, "", &sizes);
    whole.0 += &sheet.0;
    whole.line("</svg>");
    whole.0
}

fn draw_pairs(sheet: &mut Sheet, frame: Frame, mask: &Mask) {
    caption(sheet, frame, "pairs");
    let keys = mask.dims.seq_len_kv;
    let grid = Grid::new([mask.dims.seq_len_q, keys], |[rows, columns]| {
        let all = rows.len() * columns.len();
        let visible = rows.flat_map(|row| &mask.scores()[row * keys..][columns.clone()]).filter(|&&score| score != f32::NEG_INFINITY);
        // Shares of a quarter, rounded up: what is visible anywhere is drawn.
        (4 * visible.count()).div_ceil(all) as u8
    });
    for quarter in 1..=4 {
        cells(sheet, frame, &grid, quarter, &format!(r#"fill="{BLUE}" fill-opacity="{}""#, f32::from(quarter) / 4.0));
    }
    axes(sheet, frame, mask);
    swatches(sheet, frame, &[("visible", Some((BLUE, 1.0))), ("masked", None)]);
}

fn draw_change(sheet: &mut Sheet, frame: Frame, mask: &Mask, [least, most]: [f32; 2]) {
    caption(sheet, frame, &format!("change of a score of {}", mask.x));
    let (keys, largest) = (mask.dims.seq_len_kv, least.abs().max(most.abs()));
    let grid = Grid::new([mask.dims.seq_len_q, keys], |[rows, columns]| {
        let scores = rows.flat_map(|row| &mask.scores()[row * keys..][columns.clone()]);
        let (mut sum, mut count) = (0.0, 0.0);
        scores.filter(|&&score| score != f32::NEG_INFINITY).for_each(|score| (sum, count) = (sum + score - mask.x, count + 1.0));
        if count == 0.0 { 0 } else { step(sum / count, largest) }
    });
    for colour in 1..=2 * STEPS + 1 {
        cells(sheet, frame, &grid, colour, &format!(r#"fill="{}""#, ramp(colour)));
    }
    axes(sheet, frame, mask);
    let (first, last) = (step(least, largest), step(most, largest));
    let y = frame.legend();
    let label = format!("{:.3}", least);
    let label = label.trim_end_matches('0').trim_end_matches('.');
    sheet.text([frame.x, y + 9.0], 11.0, INK, "", label);
    let mut x = frame.x + label.width() as f32 * 11.0 * ADVANCE + 6.0;
    for colour in first..=last {
        sheet.line(&format!(r#"<rect x="{x:.1}" y="{y:.1}" width="9" height="10" fill="{}"/>"#, ramp(colour)));
        x += 9.0;
    }
    let label = format!("{most:.3}");
    sheet.text([x + 6.0, y + 9.0], 11.0, INK, "", label.trim_end_matches('0').trim_end_matches('.'));
    if mask.head().visible < mask.head().pairs {
        swatches(sheet, Frame { x: x + 50.0, ..frame }, &[("masked", None)]);
    }
}

/// Draws the score after the terms by the score before, a line for each head.
fn draw_curves(sheet: &mut Sheet, frame: Frame, curves: &[Vec<[f32; 2]>], drawn: usize) {
    caption(sheet, frame, "score after, by the score before");
    let Frame { x, wide, high, .. } = frame;
    let place = |[before, after]: [f32; 2]| {
        let share = |score: f32| score / CURVE / 2.0 + 0.5;
        [x + wide * share(before), TOP + high * (1.0 - share(after))]
    };
    let ([left, bottom], [right, top]) = (place([-CURVE; 2]), place([CURVE; 2]));
    let [middle_x, middle_y] = place([0.0; 2]);
    let thin = format!(r#"stroke="{INK}" stroke-opacity="0.5" fill="none""#);
    sheet.line(&format!(r#"<path d="M{left} {middle_y}H{right}M{middle_x} {top}V{bottom}" {thin} stroke-width="0.5"/>"#));
    sheet.line(&format!(r#"<path d="M{left} {bottom}L{right} {top}" {thin} stroke-dasharray="3 4"/>"#));
    let mut others: Vec<&Vec<[f32; 2]>> = curves.iter().filter(|&curve| curve != &curves[drawn]).collect();
    others.dedup();
    let styles = others.iter().map(|curve| (*curve, format!(r#"stroke="{INK}""#))).chain([(&curves[drawn], format!(r#"stroke="{BLUE}""#))]);
    for (curve, style) in styles {
        let inside = curve.iter().filter(|[_, after]| after.abs() <= CURVE);
        let points: Vec<String> = inside.map(|&point| place(point)).map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        sheet.line(&format!(r#"<polyline points="{}" fill="none" {style} stroke-width="2" stroke-linejoin="round"/>"#, points.join(" ")));
    }
    outline(sheet, frame);
    let ends = [format!("-{CURVE}"), format!("{CURVE}")];
    labels(sheet, frame, ["score after", "score before"], [[&ends[1], &ends[0]], [&ends[0], &ends[1]]]);
    let this = if others.is_empty() { "all heads" } else { "this head" };
    let others = (!others.is_empty()).then_some(("other heads", Some((INK, 1.0))));
    swatches(sheet, frame, &[(this, Some((BLUE, 1.0)))].into_iter().chain(others).collect::<Vec<_>>());
}

/// Draws the tiles. Returns the end of their legend.
fn draw_tiles(sheet: &mut Sheet, frame: Frame, mask: &Mask) -> f32 {
    caption(sheet, frame, &format!("tiles of {} x {}", mask.tile[0], mask.tile[1]));
    let (tiles, [down, across]) = (&mask.head().tiles, mask.grid());
    let colour = |tile: Tile| match tile {
        Tile::Skipped => 0,
        Tile::Whole => 1,
        Tile::Tested => 2,
        Tile::Empty => 3,
    };
    let grid = Grid::new([down, across], |[rows, columns]| {
        let mut colours = rows.flat_map(|row| &tiles[row * across..][columns.clone()]).map(|&tile| colour(tile));
        let first = colours.next().unwrap_or(0);
        if colours.all(|other| other == first) { first } else { 2 }
    });
    for (at, (fill, opacity)) in [(1, (BLUE, 1.0)), (2, (AMBER, 1.0)), (3, (AMBER, 0.35))] {
        cells(sheet, frame, &grid, at, &format!(r#"fill="{fill}" fill-opacity="{opacity}""#));
    }
    let (wide, high) =
        (frame.wide * mask.tile[1] as f32 / mask.dims.seq_len_kv as f32, frame.high * mask.tile[0] as f32 / mask.dims.seq_len_q as f32);
    if wide.min(high) >= 4.0 {
        let lines = (1..across).map(|at| format!("M{:.1} {TOP}v{:.1}", frame.x + at as f32 * wide, frame.high));
        let lines: String =
            lines.chain((1..down).map(|at| format!("M{} {:.1}h{:.1}", frame.x, TOP + at as f32 * high, frame.wide))).collect();
        sheet.line(&format!(r#"<path d="{lines}" stroke="{INK}" stroke-opacity="0.45" stroke-width="0.75" fill="none"/>"#));
    }
    axes(sheet, frame, mask);
    let mut all = vec![("skipped", None), ("whole", Some((BLUE, 1.0))), ("tested", Some((AMBER, 1.0)))];
    if tiles.contains(&Tile::Empty) {
        all.push(("tested in vain", Some((AMBER, 0.35))));
    }
    swatches(sheet, frame, &all)
}

impl Frame {
    /// Top of the legend.
    fn legend(self) -> f32 {
        TOP + self.high + 30.0
    }
}

/// Draws the cells of one colour.
fn cells(sheet: &mut Sheet, frame: Frame, grid: &Grid, colour: u8, style: &str) {
    let path = grid.path(colour);
    if path.is_empty() {
        return;
    }
    let (wide, high) = (frame.wide / grid.wide, frame.high / grid.high);
    let place = format!(r#"transform="translate({:.1} {TOP}) scale({wide:.4} {high:.4})""#, frame.x);
    sheet.line(&format!(r#"<path {place} {style} shape-rendering="crispEdges" d="{path}"/>"#));
}

fn caption(sheet: &mut Sheet, frame: Frame, text: &str) {
    sheet.text([frame.x, TOP - 8.0], 12.0, INK, r#"font-weight="600""#, text);
}

fn outline(sheet: &mut Sheet, Frame { x, wide, high }: Frame) {
    let size = format!(r#"x="{x:.1}" y="{TOP}" width="{wide:.1}" height="{high:.1}""#);
    sheet.line(&format!(r#"<rect {size} fill="none" stroke="{INK}" stroke-opacity="0.8"/>"#));
}

/// Draws the outline and the axes: rows down, keys across.
fn axes(sheet: &mut Sheet, frame: Frame, mask: &Mask) {
    outline(sheet, frame);
    let [rows, keys] = [mask.dims.seq_len_q, mask.dims.seq_len_kv].map(|len| len.to_string());
    labels(sheet, frame, ["row = query", "key"], [["0", &rows], ["0", &keys]]);
}

/// Writes the names and the ends of both axes.
fn labels(sheet: &mut Sheet, Frame { x, wide, high, .. }: Frame, [down, across]: [&str; 2], [rows, columns]: [[&str; 2]; 2]) {
    let end = r#"text-anchor="end""#;
    let bottom = TOP + high + 15.0;
    sheet.text([x, bottom], 11.0, INK, "", columns[0]);
    sheet.text([x + wide, bottom], 11.0, INK, end, columns[1]);
    if wide > 90.0 {
        sheet.text([x + wide / 2.0, bottom], 11.0, INK, r#"text-anchor="middle""#, across);
    }
    // Rows stand beside the first panel only.
    if x > LEFT {
        return;
    }
    sheet.text([x - 6.0, TOP + 9.0], 11.0, INK, end, rows[0]);
    sheet.text([x - 6.0, TOP + high], 11.0, INK, end, rows[1]);
    if high > 120.0 {
        let (x, y) = (x - 12.0, TOP + high / 2.0);
        sheet.text([x, y], 11.0, INK, &format!(r#"text-anchor="middle" transform="rotate(-90 {x:.1} {y:.1})""#), down);
    }
}

/// Draws a legend: a colour and its opacity, or an empty square, and a word for each. Returns its end.
fn swatches(sheet: &mut Sheet, frame: Frame, all: &[(&str, Option<(&str, f32)>)]) -> f32 {
    let (mut x, y) = (frame.x, frame.legend());
    for (word, fill) in all {
        let style = match fill {
            Some((colour, opacity)) => format!(r#"fill="{colour}" fill-opacity="{opacity}""#),
            None => format!(r#"fill="none" stroke="{INK}" stroke-opacity="0.8""#),
        };
        sheet.line(&format!(r#"<rect x="{x:.1}" y="{y:.1}" width="10" height="10" rx="2" {style}/>"#));
        sheet.text([x + 15.0, y + 9.0], 11.0, INK, "", word);
        x += 15.0 + word.width() as f32 * 11.0 * ADVANCE + 14.0;
    }
    x - 14.0
}
