//! Standard output, with or without colours and Unicode, and progress on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anstream::AutoStream;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

/// Standard output and its capabilities.
pub(crate) struct Terminal {
    out: AutoStream<io::Stdout>,
    /// True if the terminal shows 256 colours.
    pub(crate) colour: bool,
    /// True if the terminal shows block characters.
    pub(crate) unicode: bool,
}

impl Terminal {
    /// Opens standard output. `NO_COLOR`, `CLICOLOR_FORCE` and `TERM` are obeyed unless `choice` overrides them.
    pub(crate) fn new(choice: clap::ColorChoice) -> Self {
        let choice = match choice {
            clap::ColorChoice::Auto => anstream::ColorChoice::Auto,
            clap::ColorChoice::Always => anstream::ColorChoice::Always,
            clap::ColorChoice::Never => anstream::ColorChoice::Never,
        };
        let out = AutoStream::new(io::stdout(), choice);
        let colour = out.current_choice() != anstream::ColorChoice::Never;
        Self { out, colour, unicode: unicode_locale() }
    }

    /// Writes one JSON value, `pretty` or on one line.
    pub(crate) fn json(&mut self, value: &Value, pretty: bool) -> io::Result<()> {
        if pretty { writeln!(self, "{value:#}") } else { writeln!(self, "{value}") }
    }

    /// Prints rows of cells, between tabs, in columns: the first and the last left-aligned, the others right-aligned.
    pub(crate) fn table(&mut self, indent: usize, rows: &[String]) -> io::Result<()> {
        let rows: Vec<Vec<&str>> = rows.iter().map(|row| row.split('\t').collect()).collect();
        let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0);
        for row in &rows {
            let mut line = " ".repeat(indent);
            for (column, cell) in row.iter().enumerate() {
                let space = " ".repeat(width(column) - cell.width());
                let is_left = column == 0 || column + 1 == row.len();
                line += &if is_left { format!("{cell}{space}  ") } else { format!("{space}{cell}  ") };
            }
            writeln!(self, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Returns `text` in bold if colours are on.
    pub(crate) fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_string() }
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// True if the locale is UTF-8. An unset locale counts as UTF-8, which today's terminals and pipes expect.
fn unicode_locale() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
    !is_dumb() && locale.is_none_or(|locale| ["utf-8", "utf8"].iter().any(|utf8| locale.to_lowercase().contains(utf8)))
}

/// Fills `text` with spaces up to `width` columns.
pub(crate) fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// Formats a number with two significant digits.
pub(crate) fn two_digits(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    let magnitude = format!("{x:.1e}").split_once('e').and_then(|(_, power)| power.parse::<i32>().ok()).unwrap_or(0);
    let step = 10f64.powi(magnitude - 1);
    format!("{:.*}", (1 - magnitude).max(0) as usize, (x / step).round() * step)
}

/// Converts a number to JSON, as the shortest text that parses back to the same f32.
pub(crate) fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().ok().and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}

/// Progress of long work, on standard error: one line rewritten on a terminal, an occasional new line elsewhere.
pub(crate) struct ProgressBar {
    label: String,
    /// Time of the next line.
    next: Instant,
    was_written: bool,
    rewrite: bool,
}

impl ProgressBar {
    pub(crate) fn new(label: impl Into<String>) -> Self {
        let rewrite = io::stderr().is_terminal() && !is_dumb();
        let next = Instant::now() + Duration::from_secs(if rewrite { 1 } else { 5 });
        Self { label: label.into(), next, was_written: false, rewrite }
    }

    /// Reports the share of the work that is done, 0 to 1.
    pub(crate) fn report(&mut self, done: f64) {
        if Instant::now() >= self.next {
            self.was_written = true;
            self.next = Instant::now() + if self.rewrite { Duration::from_millis(100) } else { Duration::from_secs(10) };
            let line = format!("{} {:3.0} %", self.label, 100.0 * done.clamp(0.0, 1.0));
            // A failure to show progress is no reason to stop.
            let mut err = io::stderr().lock();
            let _ = if self.rewrite { write!(err, "\r{line}\x1b[K") } else { writeln!(err, "{line}") };
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if self.rewrite && self.was_written {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

/// Prints one line on standard error, for everything but the answer itself.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
