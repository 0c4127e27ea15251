//! Markers in text.
//!
//! Owns: finding the first of some markers, or what may become one. Must never: hold anything.

/// Where a marker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// This marker (its place in the list) begins at this byte.
    Whole { at: usize, which: usize },
    /// The text from this byte on is the beginning of one.
    Half(usize),
    /// None of them, not even in part.
    None,
}

/// The first marker of a list in a text, or the beginning of one that the text ends with. At one place the longest
/// marker counts: where a shorter one is there and a longer one may come, it is [`Found::Half`].
pub(crate) fn find<'a>(text: &str, markers: impl Iterator<Item = &'a str> + Clone) -> Found {
    let bytes = text.as_bytes();
    let mut firsts = [false; 256];
    for marker in markers.clone() {
        firsts[marker.as_bytes()[0] as usize] = true;
    }
    for at in 0..bytes.len() {
        if !firsts[bytes[at] as usize] {
            continue;
        }
        match here(&text.as_bytes()[at..], markers.clone()) {
            Here::Whole(which) => return Found::Whole { at, which },
            Here::Half => return Found::Half(at),
            Here::No => {}
        }
    }
    Found::None
}

/// What stands at the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Here {
    /// This marker.
    Whole(usize),
    /// The text ends before it is clear; an empty text is the beginning of all.
    Half,
    /// None of them.
    No,
}

/// Which of some markers a text begins with.
pub(crate) fn here<'a>(text: &[u8], markers: impl Iterator<Item = &'a str>) -> Here {
    let (mut best, mut half) = (None, false);
    for (which, marker) in markers.enumerate() {
        let marker = marker.as_bytes();
        if text.starts_with(marker) {
            if best.is_none_or(|(length, _)| length < marker.len()) {
                best = Some((marker.len(), which));
            }
        } else if marker.starts_with(text) {
            half = true;
        }
    }
    match best {
        _ if half => Here::Half,
        Some((_, which)) => Here::Whole(which),
        None => Here::No,
    }
}

/// As [`here`], where nothing follows the text: what is not whole is none.
pub(crate) fn here_at_last<'a>(text: &[u8], markers: impl Iterator<Item = &'a str>) -> Here {
    let mut best: Option<(usize, usize)> = None;
    for (which, marker) in markers.enumerate() {
        if text.starts_with(marker.as_bytes())
            && best.is_none_or(|(length, _)| length < marker.len())
        {
            best = Some((marker.len(), which));
        }
    }
    best.map_or(Here::No, |(_, which)| Here::Whole(which))
}

/// Bytes of white space that a text begins with.
pub(crate) fn spaces(text: &str) -> usize {
    text.bytes().take_while(|&byte| crate::json::is_space(byte)).count()
}

/// A text without white space at its end.
pub(crate) fn without_spaces(text: &str) -> &str {
    text.trim_end_matches([' ', '\n', '\r', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_whole_or_half() {
        let find = |text| find(text, ["<tool>", "</t>", "[T", "[T]x"].into_iter());
        assert_eq!(find("a <tool> b"), Found::Whole { at: 2, which: 0 });
        assert_eq!(find("a <too"), Found::Half(2));
        assert_eq!(find("a <toy </t>"), Found::Whole { at: 7, which: 1 });
        assert_eq!(find("a < b"), Found::None);
        assert_eq!(find("a <"), Found::Half(2));
        assert_eq!(find("[T]y"), Found::Whole { at: 0, which: 2 });
        assert_eq!(find("[T]"), Found::Half(0));
        assert_eq!(find("[T]x"), Found::Whole { at: 0, which: 3 });
    }
}
