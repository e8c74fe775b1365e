//! Charts of a report, as SVG; `None` if the record has no data for one. A candidate has one colour in all of them.

use plotters::coord::Shift;
use plotters::element::{DynElement, IntoDynElement};
use plotters::prelude::*;

use super::{Entry, Record};
use crate::terminal::two_digits;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart = Result<Option<String>, String>;

const WIDTH: u32 = 960;

/// Draws a chart of this height and returns it as SVG.
fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<(), String>) -> Chart {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area)?;
        area.present().map_err(said)?;
    }
    Ok(Some(text))
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Colour of the candidate at this place in the record: hues a golden section apart.
fn colour(candidate: usize) -> HSLColor {
    HSLColor((0.57 + 0.618_034 * candidate as f64).fract(), 0.65, 0.45)
}

/// Draws a bar for each shape and candidate.
pub(super) fn bars(record: &Record) -> Chart {
    const BAR: i32 = 16;
    const LEFT: i32 = 250;
    let (candidates, names) = (record.candidates(), record.names());
    let most = record.entries.iter().map(|entry| entry.gflops).fold(1e-9, f64::max);
    let rows = record.entries.len() as i32 * BAR + names.len() as i32 * 10;
    svg((40 + 20 * candidates.len() as i32 + rows) as u32, |area| {
        let label = ("sans-serif", 13).into_font();
        let write = |text: &str, at: (i32, i32)| area.draw(&Text::new(text.to_string(), at, label.clone())).map_err(said);
        let bar = |[from, to]: [(i32, i32); 2], index: usize| area.draw(&Rectangle::new([from, to], colour(index).filled())).map_err(said);
        let mut y = 10;
        for (index, name) in candidates.iter().enumerate() {
            bar([(LEFT, y), (LEFT + 14, y + 14)], index)?;
            write(name, (LEFT + 20, y + 1))?;
            y += 20;
        }
        for name in names {
            write(name, (4, y + 2))?;
            for entry in record.entries.iter().filter(|entry| entry.name == name) {
                let end = LEFT + (f64::from(WIDTH as i32 - LEFT - 170) * entry.gflops / most) as i32;
                bar([(LEFT, y), (end.max(LEFT + 1), y + BAR - 2)], record.place(entry))?;
                let flaw = entry.flaw.as_ref().map_or_else(String::new, |flaw| format!(", {flaw}"));
                write(&format!("{}{flaw}", two_digits(entry.gflops)), (end + 5, y + 1))?;
                y += BAR;
            }
            y += 10;
        }
        Ok(())
    })
}

/// Draws the CPU's results under the limits of the machine: the bandwidth of memory, and of the first cache, times the
/// intensity, and multiply-adds or matrix instructions.
pub(super) fn roofline(record: &Record) -> Chart {
    let (Some(memory), Some(peak)) = (record.memory_gb_s, record.multiply_add_gflops) else { return Ok(None) };
    let peak = record.matrix_gflops.map_or(peak, |matrix| matrix.max(peak));
    let entries: Vec<&Entry> = record.entries.iter().filter(|entry| entry.who.ends_with(" cpu") || entry.peer).collect();
    if entries.is_empty() {
        return Ok(None);
    }
    let most = entries.iter().map(|entry| entry.intensity).fold(100.0, f64::max) * 2.0;
    let roof = |name: &str, lightness: f64, bandwidth: f64| {
        let points = (0..=200).map(|i| 0.25 * (most / 0.25).powf(f64::from(i) / 200.0)).map(|x| (x, (x * bandwidth).min(peak)));
        Series { name: name.into(), colour: HSLColor(0.0, 0.0, lightness), marker: None, points: points.collect() }
    };
    let cache = record.cache_gb_s.map(|cache| roof("limit of the first cache", 0.6, cache));
    let mut series: Vec<Series> = cache.into_iter().chain([roof("limit of memory", 0.0, memory)]).collect();
    for (index, who) in record.candidates().into_iter().enumerate() {
        // Data that moves faster than memory does is not read from memory.
        for (note, marker, from_cache) in [("", 0, false), (", read from a cache", RING, true)] {
            let own = entries.iter().filter(|entry| entry.who == who && (entry.gflops > entry.intensity * memory) == from_cache);
            let points: Vec<_> = own.map(|entry| (entry.intensity, entry.gflops)).collect();
            if !points.is_empty() {
                series.push(Series { name: format!("{who}{note}"), colour: colour(index), marker: Some((marker, false)), points });
            }
        }
    }
    log_chart(["operations per byte that has to move", "GFLOP/s"], [(0.25, most), (1.0, peak * 2.0)], &series)
}

/// Title of an axis, and an entry's value on it.
pub(super) type Axis = (&'static str, fn(&Entry) -> Option<f64>);

/// Draws a line for each candidate and each name that `line` returns for its entries. A name has one marker.
pub(super) fn lines(record: &Record, [x, y]: [Axis; 2], line: impl Fn(&Entry) -> Option<&str>) -> Chart {
    let names = super::distinct(record.entries.iter().filter_map(&line));
    let mut series: Vec<Series> = Vec::new();
    for entry in &record.entries {
        let (Some(x), Some(y), Some(line)) = ((x.1)(entry), (y.1)(entry), line(entry)) else { continue };
        let marker = names.iter().position(|name| *name == line).unwrap_or(0);
        let name = format!("{line}, {}", entry.who);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push((x, y)),
            None => series.push(Series { name, colour: colour(record.place(entry)), marker: Some((marker, true)), points: vec![(x, y)] }),
        }
    }
    if series.is_empty() {
        return Ok(None);
    }
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let values = series.iter().flat_map(|series| &series.points).map(of);
        let (low, high) = values.fold((f64::MAX, 1e-6f64), |(low, high), x| (low.min(x), high.max(x)));
        (low.max(1e-6) / 1.5, high * 1.5)
    };
    log_chart([x.0, y.0], [bounds(|point| point.0), bounds(|point| point.1)], &series)
}

/// Kind of marker that is hollow.
const RING: usize = 3;

/// Draws one of four kinds of markers.
fn marker<DB: DrawingBackend, C: Clone + 'static>(kind: usize, at: C, colour: HSLColor) -> DynElement<'static, DB, C> {
    match kind % 4 {
        0 => Circle::new(at, 4, colour.filled()).into_dyn(),
        1 => TriangleMarker::new(at, 5, colour.filled()).into_dyn(),
        2 => Cross::new(at, 4, colour.stroke_width(2)).into_dyn(),
        _ => Circle::new(at, 4, colour.stroke_width(2)).into_dyn(),
    }
}

/// Points of a chart, with a line through them if they have no marker or the marker says so.
struct Series {
    /// Name in the legend.
    name: String,
    colour: HSLColor,
    marker: Option<(usize, bool)>,
    points: Vec<(f64, f64)>,
}

/// Draws series on logarithmic axes.
fn log_chart(titles: [&str; 2], [x, y]: [(f64, f64); 2], series: &[Series]) -> Chart {
    svg(480, |area| {
        let mut builder = ChartBuilder::on(area);
        let builder = builder.margin(15).x_label_area_size(40).y_label_area_size(60);
        let mut chart = builder.build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale()).map_err(said)?;
        let digits = |x: &f64| two_digits(*x);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(titles[0]).y_desc(titles[1]).x_label_formatter(&digits).y_label_formatter(&digits);
        mesh.max_light_lines(0).draw().map_err(said)?;
        for &Series { ref name, colour, marker, ref points } in series {
            if marker.is_none_or(|(_, has_line)| has_line) {
                let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2))).map_err(said)?;
                if marker.is_none() {
                    drawn.label(name).legend(move |(x, y)| PathElement::new([(x - 5, y), (x + 5, y)], colour.stroke_width(2)));
                }
            }
            if let Some((kind, _)) = marker {
                let drawn = chart.draw_series(points.iter().map(|&point| self::marker(kind, point, colour))).map_err(said)?;
                drawn.label(name).legend(move |at| self::marker(kind, at, colour));
            }
        }
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
        labels.draw().map_err(said)
    })
}
