//! Texts of the files under `shaders/`. In browsers, where every byte is downloaded, they come without comments and
//! indentation; lines keep their numbers.

/// Name and text of a shader file.
pub(crate) type File = (&'static str, &'static str);

/// Names and texts of shader files under `shaders/`.
macro_rules! files {
    ($($name:literal),*) => {{
        const FILES: &[$crate::shader_text::File] = &[$((concat!("shaders/", $name), {
            const TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name));
            #[cfg(target_family = "wasm")]
            const TEXT_OF_PAGES: &str = {
                #[allow(long_running_const_eval, reason = "it ends: a few steps for each byte of a file")]
                const SHORT: [u8; $crate::shader_text::stripped_len(TEXT)] = $crate::shader_text::stripped(TEXT);
                $crate::shader_text::text(&SHORT)
            };
            #[cfg(not(target_family = "wasm"))]
            const TEXT_OF_PAGES: &str = TEXT;
            TEXT_OF_PAGES
        })),*];
        FILES
    }};
}

/// Number of bytes of [`stripped`].
#[cfg(any(target_family = "wasm", test))]
pub(crate) const fn stripped_len(text: &str) -> usize {
    let (mut at, mut len) = (0, 0);
    while at < text.len() {
        let (next, byte) = step(text.as_bytes(), at);
        (at, len) = (next, len + byte.is_some() as usize);
    }
    len
}

/// Text without comments and indentation; `N` is its [`stripped_len`].
#[cfg(any(target_family = "wasm", test))]
pub(crate) const fn stripped<const N: usize>(text: &str) -> [u8; N] {
    let mut to = [0; N];
    let (mut at, mut len) = (0, 0);
    while at < text.len() {
        let (next, byte) = step(text.as_bytes(), at);
        if let Some(byte) = byte {
            to[len] = byte;
            len += 1;
        }
        at = next;
    }
    to
}

/// Text of bytes that a text was stripped to.
#[cfg(any(target_family = "wasm", test))]
pub(crate) const fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("comments go as a whole"),
    }
}

/// Reads from `at` on: where to read next, and the byte to keep. WGSL has no text in quotes that could look like a comment.
#[cfg(any(target_family = "wasm", test))]
const fn step(text: &[u8], at: usize) -> (usize, Option<u8>) {
    let starts_line = at == 0 || text[at - 1] == b'\n';
    let mut end = at;
    while end < text.len() && text[end] == b' ' {
        end += 1;
    }
    let is_comment = end + 1 < text.len() && text[end] == b'/' && text[end + 1] == b'/';
    let ends_line = end < text.len() && text[end] == b'\n';
    if is_comment {
        while end < text.len() && text[end] != b'\n' {
            end += 1;
        }
        (end, None)
    } else if end > at && (starts_line || ends_line) {
        (end, None)
    } else {
        (at + 1, Some(text[at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_indentation_go_and_lines_stay() {
        const TEXT: &str = "// Defines: é\nfn f(x: f32) -> f32 {  // half\n    let y = x / 2.0;\n\n    return y; \n}\n";
        const SHORT: [u8; stripped_len(TEXT)] = stripped(TEXT);
        assert_eq!(text(&SHORT), "\nfn f(x: f32) -> f32 {\nlet y = x / 2.0;\n\nreturn y;\n}\n");
    }
}
