//! What is held has an end, and time is linear.

use std::time::{Duration, Instant};

use crate::support::{Item, asked, parse};
use minisgl_dialect::{HELD_BYTES_MAX, by_name, names};

/// Of [`MANY`] bytes at once, and of few one by one: linear time is some 20 ms, a search of the rest for each of
/// many beginnings takes 5 s and more.
const TIME_MAX: Duration = Duration::from_millis(2_500);
const MANY: usize = 400_000;
const FEW: usize = 20_000;

/// Beginnings that are repeated.
fn repeated(name: &str, bytes: usize) -> Vec<String> {
    let dialect = by_name(name).unwrap();
    let mut all: Vec<String> = Vec::new();
    let mut repeat = |text: String| all.push(text.repeat(bytes / text.len()));
    repeat(" ".into());
    for marker in dialect.keeps() {
        repeat(marker.into());
        let half: String = marker.chars().take(marker.chars().count() - 1).collect();
        repeat(half);
        repeat(format!("{marker}{{\"a\": \"{marker}"));
    }
    all
}

/// Beginnings of which much follows.
fn long(name: &str, bytes: usize) -> Vec<String> {
    let dialect = by_name(name).unwrap();
    let mut all: Vec<String> = Vec::new();
    for marker in dialect.keeps() {
        all.push(format!("{marker}{{\"name\": \"{}", "x".repeat(bytes)));
        all.push(format!("{marker}{}", " ".repeat(bytes)));
        all.push(format!("{marker}{}", "[".repeat(bytes)));
        all.push(format!("{marker}{}", "x".repeat(bytes)));
        let close = "</parameter> ".repeat(bytes / 13);
        all.push(format!("{marker}<function=f><parameter=a>{close}"));
        let list = "[1,".repeat(bytes / 3);
        all.push(format!("{marker}<function=plan><parameter=steps>{list}"));
    }
    all.push("[{\"name\": \"now\", \"x\": \"".to_string() + &"y".repeat(bytes));
    all
}

#[test]
fn time_is_linear_and_little_is_held() {
    for name in names() {
        let dialect = by_name(name).unwrap();
        let asked = asked(dialect, "<|start|>assistant");
        for text in repeated(name, FEW).into_iter().chain(long(name, 4 * FEW)) {
            let shown: String = text.chars().take(60).collect();
            let began = Instant::now();
            let mut parser = dialect.parser(&asked);
            let (mut most, mut given) = (0, 0);
            for (at, char) in text.char_indices() {
                parser.push(&text[at..at + char.len_utf8()], &mut |_| given += 1);
                most = most.max(parser.held());
            }
            parser.finish(&mut |_| given += 1);
            assert!(most <= HELD_BYTES_MAX + 1024, "{name} held {most} bytes of {shown:?}");
            assert!(began.elapsed() < TIME_MAX, "{name}: {:?} for {shown:?}", began.elapsed());
        }
        for text in repeated(name, MANY) {
            let shown: String = text.chars().take(60).collect();
            let began = Instant::now();
            let mut parser = dialect.parser(&asked);
            let mut given = 0;
            parser.push(&text, &mut |_| given += 1);
            parser.finish(&mut |_| given += 1);
            assert!(began.elapsed() < TIME_MAX, "{name}: {:?} for {shown:?}", began.elapsed());
        }
    }
}

#[test]
fn white_space_goes_with_a_marker_up_to_a_limit() {
    let dialect = by_name("hermes").unwrap();
    let asked = asked(dialect, "");
    for (spaces, text) in [(128, "a".to_string()), (300, format!("a{}", " ".repeat(300)))] {
        let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
        let output = format!("a{}{call}", " ".repeat(spaces));
        let at_once = parse(dialect, &asked, [output.as_str()]);
        assert_eq!(at_once.0[0], Item::Text(text));
        assert_eq!(at_once.2.counts.whole, 1);
        let chars: Vec<&str> = output.split_inclusive(|_| true).collect();
        assert_eq!(parse(dialect, &asked, chars), at_once);
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
