//! The table of dialects in docs/features.md.

use minisgl_dialect::{by_name, names};

/// As the page has it.
fn rendered() -> String {
    let mut text = String::from("| dialect | of |\n|---|---|\n");
    for name in names() {
        let about = by_name(name).unwrap().about.replace('|', "\\|");
        text += &format!("| `{name}` | {about} |\n");
    }
    text
}

#[test]
fn the_documentation_lists_all_dialects() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/features.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- dialects: begin -->\n", "<!-- dialects: end -->");
    let (before, rest) = page.split_once(begin).unwrap();
    let (table, after) = rest.split_once(end).unwrap();
    if std::env::var_os("MINISGL_WRITE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{begin}{}{end}{after}", rendered())).unwrap();
        return;
    }
    assert_eq!(table, rendered(), "write it with MINISGL_WRITE_DOCS=1");
}
