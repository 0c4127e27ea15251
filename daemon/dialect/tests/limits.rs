//! What is held has an end, and time is linear.

mod support;

use std::time::{Duration, Instant};

use minisgl_dialect::{HELD_BYTES_MAX, by_name, names};
use support::{Item, asked, parse};

/// Of 80,000 bytes, piece by piece or at once: linear time is some 20 ms, and a search of the rest for each marker seconds.
const TIME_MAX: Duration = Duration::from_millis(500);

/// Beginnings that are repeated, or followed by much.
fn heavy(dialect: &str) -> Vec<String> {
    let dialect = by_name(dialect).unwrap();
    let mut all: Vec<String> = Vec::new();
    let many = 80_000;
    for marker in dialect.keeps() {
        all.push(marker.repeat(many / marker.len()));
        let half: String = marker.chars().take(marker.chars().count() - 1).collect();
        all.push(half.repeat(many / marker.len()));
        all.push(format!("{marker}{{\"name\": \"{}", "x".repeat(many)));
        all.push(format!("{marker}{{\"a\": \"{marker}").repeat(many / (10 + 2 * marker.len())));
        all.push(format!("{marker}{}", " ".repeat(many)));
        all.push(format!("{marker}{}", "[".repeat(many)));
        all.push(format!("{marker}{}", "x".repeat(many)));
        all.push(format!("{marker}<function=f><parameter=a>{}", "</parameter> ".repeat(many / 13)));
        all.push(format!("{marker}<function=plan><parameter=steps>{}", "[1,".repeat(many / 3)));
    }
    all.push(format!("{}x", " ".repeat(many)));
    all.push("[{\"name\": \"now\", \"x\": \"".to_string() + &"y".repeat(many));
    all
}

#[test]
fn time_is_linear_and_little_is_held() {
    for name in names() {
        let dialect = by_name(name).unwrap();
        let asked = asked(dialect, "<|start|>assistant");
        for text in heavy(name) {
            let began = Instant::now();
            let mut parser = dialect.parser(&asked);
            let mut most = 0;
            let mut given = 0;
            for (at, char) in text.char_indices() {
                parser.push(&text[at..at + char.len_utf8()], &mut |_| given += 1);
                most = most.max(parser.held());
            }
            parser.finish(&mut |_| given += 1);
            let shown: String = text.chars().take(60).collect();
            assert!(most <= HELD_BYTES_MAX + 1024, "{name} held {most} bytes of {shown:?}");
            assert!(began.elapsed() < TIME_MAX, "{name} took too long: {shown:?}");
            let began = Instant::now();
            parse(dialect, &asked, [text.as_str()]);
            assert!(began.elapsed() < TIME_MAX, "{name} took too long at once: {shown:?}");
        }
    }
}

#[test]
fn a_call_that_does_not_begin_within_the_limit_is_text() {
    let dialect = by_name("hermes").unwrap();
    let asked = asked(dialect, "");
    for length in [HELD_BYTES_MAX / 2, HELD_BYTES_MAX * 2] {
        let text = format!(
            "<tool_call>{{\"arguments\": {{\"a\": \"{}\"}}, \"name\": \"now\"}}</tool_call>",
            "é".repeat(length / 2)
        );
        let at_once = parse(dialect, &asked, [text.as_str()]);
        let chars: Vec<&str> = text.split_inclusive(|_| true).collect();
        assert_eq!(parse(dialect, &asked, chars), at_once);
        let long = length > HELD_BYTES_MAX;
        assert_eq!(at_once.2.counts.too_long, u32::from(long));
        assert_eq!(at_once.2.counts.whole, u32::from(!long));
        if long {
            assert_eq!(at_once.0, [Item::Text(text)]);
        }
    }
}
