//! Charts of a report, as SVG; `None` if the record has no data for one.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Entry, Record};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 960;

/// Draws a chart of this height and returns it as SVG.
fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<(), String>) -> Result<Option<String>, String> {
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

fn colour(index: usize) -> RGBColor {
    const COLOURS: [(u8, u8, u8); 8] =
        [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194), (23, 190, 207)];
    let (r, g, b) = COLOURS[index % COLOURS.len()];
    RGBColor(r, g, b)
}

/// Returns the candidates, each once, in order of appearance.
fn everybody<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for entry in entries {
        if !found.contains(&entry.who.as_str()) {
            found.push(&entry.who);
        }
    }
    found
}

/// Draws a bar for each shape and candidate.
pub(super) fn bars(record: &Record) -> Result<Option<String>, String> {
    let who = everybody(record.entries.iter());
    let names = record.names();
    let most = record.entries.iter().map(|entry| entry.gflops).fold(1e-9, f64::max);
    const BAR: i32 = 16;
    const LEFT: i32 = 250;
    let rows = record.entries.len() as i32 * BAR + names.len() as i32 * 10;
    let height = 20 + 20 * who.len() as i32 + rows + 20;
    svg(height as u32, |area| {
        let label = ("sans-serif", 13).into_font();
        let write = |text: &str, at: (i32, i32)| area.draw(&Text::new(text.to_string(), at, label.clone())).map_err(said);
        let bar =
            |from: (i32, i32), to: (i32, i32), index: usize| area.draw(&Rectangle::new([from, to], colour(index).filled())).map_err(said);
        let mut y = 10;
        for (index, name) in who.iter().enumerate() {
            bar((LEFT, y), (LEFT + 14, y + 14), index)?;
            write(name, (LEFT + 20, y + 1))?;
            y += 20;
        }
        for name in names {
            write(name, (4, y + 2))?;
            for entry in record.entries.iter().filter(|entry| entry.name == name) {
                let index = who.iter().position(|&who| who == entry.who).unwrap_or(0);
                let end = LEFT + (f64::from(WIDTH as i32 - LEFT - 70) * entry.gflops / most) as i32;
                bar((LEFT, y), (end.max(LEFT + 1), y + BAR - 2), index)?;
                write(&format!("{:.1}{}", entry.gflops, if entry.wrong { " wrong" } else { "" }), (end + 5, y + 1))?;
                y += BAR;
            }
            y += 10;
        }
        Ok(())
    })
}

/// Draws the CPU's results under the limits of the machine: bandwidth x intensity, and multiply-adds alone.
pub(super) fn roofline(record: &Record) -> Result<Option<String>, String> {
    let (Some(copy), Some(peak)) = (record.copy_gb_s, record.multiply_add_gflops) else { return Ok(None) };
    let entries: Vec<&Entry> = record.entries.iter().filter(|entry| entry.who.ends_with(" cpu") || entry.peer).collect();
    if entries.is_empty() {
        return Ok(None);
    }
    let most = entries.iter().map(|entry| entry.intensity).fold(100.0, f64::max) * 2.0;
    svg(480, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(15)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((0.25f64..most).log_scale(), (1.0f64..peak * 2.0).log_scale())
            .map_err(said)?;
        chart.configure_mesh().x_desc("operations a byte that has to move").y_desc("GFLOP/s").max_light_lines(0).draw().map_err(said)?;
        let roof = (0..=200).map(|i| 0.25 * (most / 0.25).powf(f64::from(i) / 200.0)).map(|x| (x, (x * copy).min(peak)));
        chart.draw_series(LineSeries::new(roof, BLACK.stroke_width(2))).map_err(said)?;
        for (index, who) in everybody(entries.iter().copied()).into_iter().enumerate() {
            let points = entries.iter().filter(|entry| entry.who == who).map(|entry| (entry.intensity, entry.gflops));
            chart
                .draw_series(points.map(|point| Circle::new(point, 4, colour(index).filled())))
                .map_err(said)?
                .label(who)
                .legend(move |at| Circle::new(at, 4, colour(index).filled()));
        }
        legend(&mut chart)
    })
}

/// Title of an axis, and an entry's value on it.
pub(super) type Axis = (&'static str, fn(&Entry) -> Option<f64>);

/// Draws a line for each candidate and each name that `line` returns for its entries.
pub(super) fn lines(record: &Record, [x, y]: [Axis; 2], line: impl Fn(&Entry) -> Option<&str>) -> Result<Option<String>, String> {
    let (titles, of) = ([x.0, y.0], [x.1, y.1]);
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for entry in &record.entries {
        let [Some(x), Some(y)] = of.map(|of| of(entry)) else { continue };
        let Some(line) = line(entry) else { continue };
        let (line, point) = (format!("{line}, {}", entry.who), (x, y));
        match lines.iter_mut().find(|(name, _)| *name == line) {
            Some((_, points)) => points.push(point),
            None => lines.push((line, vec![point])),
        }
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    if lines.is_empty() {
        return Ok(None);
    }
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points().map(of).fold((f64::MAX, 1e-6f64), |(low, high), x| (low.min(x), high.max(x)));
        (low.max(1e-6) / 1.5, high * 1.5)
    };
    let (x, y) = (bounds(|point| point.0), bounds(|point| point.1));
    svg(480, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(15)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())
            .map_err(said)?;
        chart.configure_mesh().x_desc(titles[0]).y_desc(titles[1]).max_light_lines(0).draw().map_err(said)?;
        for (index, (name, points)) in lines.iter().enumerate() {
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour(index).stroke_width(2)).point_size(3))
                .map_err(said)?
                .label(name)
                .legend(move |at| Circle::new(at, 4, colour(index).filled()));
        }
        legend(&mut chart)
    })
}

fn legend<'a, X: Ranged<ValueType = f64>, Y: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
) -> Result<(), String> {
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    labels.draw().map_err(said)
}
