//! Matrices in the terminal, as figures or as heat maps.

use std::io::{self, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::terminal::{Terminal, padded};

/// Colour ramp of the 256-colour palette, low to high.
const RAMP: [u8; 12] = [17, 18, 19, 25, 31, 37, 43, 79, 115, 151, 187, 229];
/// Place in the ramp from which on black text is readable.
const LIGHT: usize = 6;
const SHADES: [&str; 5] = [" ", "░", "▒", "▓", "█"];
const PLAIN_SHADES: [&str; 5] = [" ", ".", ":", "*", "#"];
/// Width of a figure, in terminal columns.
const CELL: usize = 9;
/// Matrices with more columns than this are drawn as shades only.
const MOST_FIGURES: usize = 14;

/// Prints a matrix of figures, one labelled row per line.
pub(super) fn figures(terminal: &mut Terminal, labels: &[String], values: &[f32], columns: usize) -> io::Result<()> {
    let (margin, decimals) = (margin(labels), decimals(values));
    for (label, row) in labels.iter().zip(values.chunks(columns)) {
        let figures: String = row.iter().map(|value| format!("{:>CELL$.decimals$}", value + 0.0)).collect();
        writeln!(terminal, "     {}{figures}", padded(label, margin))?;
    }
    Ok(())
}

/// Formats one row of a matrix.
pub(super) fn row_text(values: &[f32]) -> String {
    let decimals = decimals(values);
    let figures: Vec<String> = values.iter().map(|value| format!("{:.decimals$}", value + 0.0)).collect();
    format!("[{}]", figures.join(", "))
}

fn decimals(values: &[f32]) -> usize {
    if values.iter().all(|value| value.fract() == 0.0) { 0 } else { 4 }
}

fn margin(labels: &[String]) -> usize {
    labels.iter().map(|label| label.width()).max().unwrap_or(0) + 2
}

/// Prints a heat map: query tokens down, key tokens across; `focus` marks a row. Shades run from `low` to `high` on a
/// square-root scale, which spreads the small weights.
pub(super) fn heatmap(
    terminal: &mut Terminal,
    labels: &[String],
    values: &[f32],
    [low, high]: [f32; 2],
    focus: Option<usize>,
) -> io::Result<()> {
    let columns = labels.len();
    let narrow = columns > MOST_FIGURES;
    let (margin, decimals) = (margin(labels), decimals(values));
    if !narrow {
        write!(terminal, "     {:margin$}", "")?;
        for label in labels {
            let label = shorten(label, CELL - 1);
            write!(terminal, "{}{label}", " ".repeat(CELL - label.width()))?;
        }
        writeln!(terminal)?;
    }
    let arrow = if terminal.unicode { "›" } else { ">" };
    for (i, (label, row)) in labels.iter().zip(values.chunks(columns)).enumerate() {
        write!(terminal, "   {} {}", if focus == Some(i) { arrow } else { " " }, padded(label, margin))?;
        for &value in row {
            let share = if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0).sqrt() } else { 0.0 };
            let text = if narrow { "  ".to_string() } else { format!("{:>1$.decimals$} ", value + 0.0, CELL - 1) };
            if terminal.colour {
                let at = (share * (RAMP.len() - 1) as f32).round() as usize;
                write!(terminal, "\x1b[48;5;{};38;5;{}m{text}\x1b[0m", RAMP[at], if at < LIGHT { 255 } else { 16 })?;
            } else {
                let shades = if terminal.unicode { SHADES } else { PLAIN_SHADES };
                let shade = shades[(share * (shades.len() - 1) as f32).round() as usize];
                if !narrow {
                    write!(terminal, "{}", &text[1..text.len() - 1])?;
                }
                write!(terminal, "{shade}{shade}")?;
            }
        }
        writeln!(terminal)?;
    }
    Ok(())
}

/// Shortens a label to at most `most` columns; `~` marks the cut.
pub(super) fn shorten(label: &str, most: usize) -> String {
    if label.width() <= most {
        return label.to_string();
    }
    let mut columns = 1;
    let fits = |c: &char| {
        columns += c.width().unwrap_or(0);
        columns <= most
    };
    label.chars().take_while(fits).chain(['~']).collect()
}
