//! Heat maps as a picture: one self-contained SVG file.

use unicode_width::UnicodeWidthStr;

use super::heatmap::shorten;

/// Contents of a picture: heat maps of weights 0 to 1 with the same tokens, down (queries) and across (keys).
pub(super) struct Picture<'a> {
    pub(super) title: &'a str,
    pub(super) footer: &'a str,
    pub(super) tokens: &'a [String],
    /// Title and weights, [tokens, tokens], of the large heat map.
    pub(super) whole: (&'a str, &'a [f32]),
    /// Weights of the small ones, [heads, tokens, tokens].
    pub(super) heads: &'a [f32],
}

const SUBTITLE: &str = "Attention weights: how much each token (row) takes from each token (column). Rows sum to 1.";
pub(super) const FONT: &str = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif";
const INK: &str = "#1f2933";
const SOFT: &str = "#616e7c";
/// Colour ramp, low to high: paper to deep blue in perceptually even steps.
const RAMP: [[f32; 3]; 6] =
    [[247.0, 250.0, 252.0], [208.0, 226.0, 242.0], [148.0, 196.0, 223.0], [74.0, 152.0, 201.0], [23.0, 100.0, 171.0], [8.0, 48.0, 107.0]];
const MARGIN: f32 = 32.0;
/// Average advance of a column, in font sizes.
pub(super) const ADVANCE: f32 = 0.58;

/// Part of a picture that has been drawn.
#[derive(Default)]
pub(super) struct Sheet(pub(super) String);

impl Sheet {
    pub(super) fn line(&mut self, element: &str) {
        self.0 += element;
        self.0.push('\n');
    }

    pub(super) fn text(&mut self, [x, y]: [f32; 2], size: f32, colour: &str, more: &str, text: &str) {
        let text = escape(text);
        self.line(&format!(r#"<text x="{x:.1}" y="{y:.1}" font-size="{size:.1}" fill="{colour}" {more}>{text}</text>"#));
    }

    /// Draws a heat map with its upper left corner at (x, y), cells of `cell`, labels of font size `size`.
    fn panel(&mut self, (title, weights): (&str, &[f32]), tokens: &[String], [x, y]: [f32; 2], cell: f32, size: f32) {
        let (left, top) = (x + label_width(tokens, size), y + size * 1.4 + label_rise(tokens, size));
        self.text([left, y + size], size * 1.15, INK, r#"font-weight="600""#, title);
        for (i, token) in tokens.iter().enumerate() {
            let middle = (i as f32 + 0.5) * cell;
            self.text([left - 8.0, top + middle + size * 0.35], size, INK, r#"text-anchor="end""#, token);
            let at @ [x, y] = [left + middle + size * 0.3, top - 8.0];
            self.text(at, size, INK, &format!(r#"transform="rotate(-45 {x:.1} {y:.1})""#), token);
        }
        let gap = (cell * 0.03).min(1.5);
        let (side, round) = (cell - 2.0 * gap, (cell * 0.08).min(4.0));
        for (at, &weight) in weights.iter().enumerate() {
            let (row, column) = (at / tokens.len(), at % tokens.len());
            let (x, y) = (left + column as f32 * cell + gap, top + row as f32 * cell + gap);
            let (fill, dark) = colour(weight);
            let tip = escape(&format!("{} attends to {}: {weight:.4}", tokens[row], tokens[column]));
            let place = format!(r#"x="{x:.1}" y="{y:.1}" width="{side:.1}" height="{side:.1}" rx="{round:.1}""#);
            self.line(&format!(r#"<rect {place} fill="{fill}"><title>{tip}</title></rect>"#));
            if cell >= 34.0 {
                let ink = if dark { "#ffffff" } else { INK };
                let middle = [x + side / 2.0, y + side / 2.0 + cell * 0.09];
                self.text(middle, cell * 0.26, ink, r#"text-anchor="middle""#, &format!("{weight:.2}"));
            }
        }
    }

    /// Draws the colour scale.
    fn legend(&mut self, [x, y]: [f32; 2]) {
        self.line(&format!(r#"<rect x="{x:.1}" y="{y:.1}" width="160" height="10" rx="3" fill="url(#ramp)"/>"#));
        self.text([x, y + 26.0], 11.0, SOFT, "", "weight 0");
        self.text([x + 160.0, y + 26.0], 11.0, SOFT, r#"text-anchor="end""#, "1");
    }
}

/// Returns the picture as SVG.
pub(super) fn draw(picture: &Picture<'_>) -> String {
    let tokens: Vec<String> = picture.tokens.iter().map(|token| shorten(token, 16)).collect();
    let title = shorten(picture.title, 90);
    let count = tokens.len() as f32;
    let cell = (520.0 / count).clamp(12.0, 72.0);
    let size = (cell * 0.3).clamp(9.0, 15.0);
    let small = (230.0 / count).clamp(6.0, 40.0);
    let small_size = (small * 0.42).clamp(6.5, 11.0);
    let block = |cell: f32, size: f32| {
        let rise = label_rise(&tokens, size);
        [label_width(&tokens, size) + count * cell + rise, size * 1.4 + rise + count * cell]
    };
    let [wide, high] = block(cell, size);
    let [small_wide, small_high] = block(small, small_size);
    let heads = picture.heads.len() / (tokens.len() * tokens.len());
    let (gap, head) = (24.0, 96.0);
    // Up to four heads fit beside the large panel; more go below it.
    let beside = heads <= 4;
    let columns = if beside { heads.min(2) } else { heads.div_ceil(heads.div_ceil(6)) };
    let rows = if heads == 0 { 0 } else { heads.div_ceil(columns) };
    let [grid_wide, grid_high] = [columns as f32 * (small_wide + gap), rows as f32 * (small_high + gap)];
    let [left, top] = if beside { [MARGIN + wide + gap, head] } else { [MARGIN, head + high + gap] };
    let text_wide = |text: &str, size: f32| text.width() as f32 * size * ADVANCE;
    let texts = text_wide(&title, 22.0).max(text_wide(SUBTITLE, 13.0)).max(text_wide(picture.footer, 11.0));
    let width = (left + grid_wide).max(MARGIN + wide.max(texts)) + MARGIN;
    let bottom = (head + high + gap).max(top + grid_high) + 8.0;
    let height = bottom + 84.0;

    let mut sheet = Sheet::default();
    let size_of = format!(r#"width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}""#);
    sheet.line(&format!(r#"<svg xmlns="http://www.w3.org/2000/svg" {size_of} role="img" font-family="{FONT}">"#));
    let stops = (0..=10).map(|step| step as f32 / 10.0);
    let stops: String = stops.map(|share| format!(r#"<stop offset="{share:.1}" stop-color="{}"/>"#, colour(share).0)).collect();
    sheet.line(&format!("<title>{}</title>\n<defs><linearGradient id=\"ramp\">{stops}</linearGradient></defs>", escape(&title)));
    sheet.line("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>");
    sheet.text([MARGIN, MARGIN + 18.0], 22.0, INK, r#"font-weight="650""#, &title);
    sheet.text([MARGIN, MARGIN + 40.0], 13.0, SOFT, "", SUBTITLE);
    sheet.panel(picture.whole, &tokens, [MARGIN, head], cell, size);
    for (at, weights) in picture.heads.chunks(tokens.len() * tokens.len()).enumerate() {
        let corner = [left + (at % columns) as f32 * (small_wide + gap), top + (at / columns) as f32 * (small_high + gap)];
        sheet.panel((&format!("head {} of {heads}", at + 1), weights), &tokens, corner, small, small_size);
    }
    sheet.legend([MARGIN, bottom + 4.0]);
    sheet.text([MARGIN, bottom + 58.0], 11.0, SOFT, "", picture.footer);
    sheet.line("</svg>");
    sheet.0
}

fn label_width(tokens: &[String], size: f32) -> f32 {
    let longest = tokens.iter().map(|token| token.width()).max().unwrap_or(0);
    longest as f32 * size * ADVANCE + 12.0
}

/// Height of the column labels, which are rotated by 45 degrees.
fn label_rise(tokens: &[String], size: f32) -> f32 {
    label_width(tokens, size) * std::f32::consts::FRAC_1_SQRT_2 + size * 0.7
}

/// Returns the colour of a weight; true if it is dark.
fn colour(weight: f32) -> (String, bool) {
    // The square root spreads small weights, which are the most common.
    let at = weight.clamp(0.0, 1.0).sqrt() * (RAMP.len() - 1) as f32;
    let low = (at as usize).min(RAMP.len() - 2);
    let share = at - low as f32;
    let [r, g, b] = std::array::from_fn(|channel| (RAMP[low][channel] * (1.0 - share) + RAMP[low + 1][channel] * share).round() as u8);
    (format!("#{r:02x}{g:02x}{b:02x}"), at > 2.8)
}

/// Escapes `text` for XML and replaces characters that XML forbids.
pub(crate) fn escape(text: &str) -> String {
    let allowed = |c: char| if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' { '\u{fffd}' } else { c };
    let text: String = text.chars().map(allowed).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
