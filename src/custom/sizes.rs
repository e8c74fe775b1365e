//! Sizes of arrays in a text, before naga reads it: naga makes a zero of an array element by element while it folds
//! constants, and a size of billions would take all memory.

/// Most elements of an array that naga may see; programs have fewer.
const MOST: u64 = 1 << 16;

/// Finds an array whose size is not a small literal, or the name of a constant that is one: its place, and why.
pub(super) fn refused(text: &str) -> Option<(usize, String)> {
    let text = without_comments(text);
    let mut from = 0;
    while let Some(at) = text[from..].find("array").map(|at| from + at) {
        from = at + "array".len();
        let is_word = !text[..at].ends_with(is_of_name);
        let Some(template) = text[from..].trim_start().strip_prefix('<').filter(|_| is_word) else { continue };
        let Some(size) = size(template).filter(|size| !size.is_empty()) else { continue };
        let is_name = size.chars().all(is_of_name) && !size.starts_with(|first: char| first.is_ascii_digit());
        let is_known = is_small(size) || is_name && is_constant(&text, size);
        if !is_known {
            return Some((at, format!("the size of an array, `{size}`, is not a literal or a constant that is one, up to {MOST}")));
        }
    }
    None
}

fn is_of_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The text with comments as spaces, at the same places.
fn without_comments(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let (mut at, mut depth, mut line) = (0, 0, false);
    while at < bytes.len() {
        let pair = [bytes[at], bytes.get(at + 1).copied().unwrap_or(0)];
        let wide = match &pair {
            b"/*" if !line => {
                depth += 1;
                true
            }
            b"*/" if depth > 0 => {
                depth -= 1;
                bytes[at..at + 2].fill(b' ');
                at += 2;
                continue;
            }
            b"//" if depth == 0 => {
                line = true;
                false
            }
            _ => false,
        };
        // All line breaks of WGSL; half of some other letters, too.
        line &= !matches!(pair, [b'\n'..=b'\r', _] | [0xc2, 0x85] | [0xe2, 0x80]);
        if (line || depth > 0) && bytes[at] != b'\n' {
            bytes[at] = b' ';
        }
        at += 1;
        if wide {
            bytes[at] = b' ';
            at += 1;
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// Text after the first comma of a template's arguments; `None` without one, the whole rest if the template does not end.
fn size(template: &str) -> Option<&str> {
    let (mut angles, mut round, mut start) = (0, 0, None);
    for (at, letter) in template.char_indices() {
        match letter {
            '(' => round += 1,
            ')' => round -= 1,
            '<' if round == 0 => angles += 1,
            '>' if round == 0 && angles == 0 => return start.map(|start: usize| template[start..at].trim().trim_end_matches(',').trim()),
            '>' if round == 0 => angles -= 1,
            ',' if round == 0 && angles == 0 && start.is_none() => start = Some(at + 1),
            ';' | '{' | '}' => break,
            _ => {}
        }
    }
    start.map(|start| template[start..].trim().split([';', '{', '}']).next().unwrap_or_default())
}

/// True for a small literal.
fn is_small(size: &str) -> bool {
    let digits = size.trim_end_matches(['u', 'i']);
    let number = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    number.is_ok_and(|number| number <= MOST)
}

/// True if every constant of that name is a small literal.
fn is_constant(text: &str, name: &str) -> bool {
    let mut all = text.match_indices("const").filter_map(|(at, word)| {
        let (declared, value) = text[at + word.len()..].split(';').next()?.split_once('=')?;
        let declared = declared.split(':').next()?.trim();
        (declared == name).then(|| is_small(value.trim()))
    });
    // An unknown name is naga's to refuse.
    all.all(|is_small| is_small)
}
