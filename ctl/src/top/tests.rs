//! Frames of what a daemon once said: SmolLM2 and a small random model, on a CPU, beside two GPUs.

use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use minisgl_proto::admin::{ModelState, VersionInfo};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::draw::{State, draw, text};
use super::view::{History, Look, View};
use crate::exposition::samples;

const MODELS: &str = include_str!("../../tests/data/top/models.json");
const BEFORE: &str = include_str!("../../tests/data/top/before.txt");
const NOW: &str = include_str!("../../tests/data/top/now.txt");

fn look(metrics: &str, at: Instant) -> Look {
    let version = VersionInfo {
        version: "0.1.0".into(),
        pid: 1,
        uptime_s: 3700.0,
        listen: "127.0.0.1:8000".into(),
    };
    let models = serde_json::from_str(MODELS).unwrap();
    Look { at, version, models, samples: samples(metrics).collect() }
}

/// After two looks, 15 s apart.
fn view() -> View {
    let (mut history, begin) = (History::default(), Instant::now());
    history.add(look(BEFORE, begin));
    history.add(look(NOW, begin + Duration::from_secs(15)))
}

/// The frame on a terminal of this size.
fn frame(view: &View, state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(view, state, frame.area(), frame.buffer_mut())).unwrap();
    terminal.backend().to_string()
}

fn live() -> State {
    State { live: true, ..State::default() }
}

fn check(text: &str, expected: Expect) {
    expected.assert_eq(text);
}

#[test]
fn everything_fits_on_80_by_24() {
    check(
        &frame(&view(), &live(), 80, 24),
        expect![[r#"
        "minisgld 0.1.0  up 1h01m   2 models ready   4 running, 0 waiting, 156 tok/s     "
        "                                                                                "
        "MODEL        STATE       RUN WAIT  TOK/S  TTFT   p95   ITL   p95   KV CACHE HITS"
        "smollm2      ready         3    0     13  1.0s  2.5s 150ms 199ms   1%    5%  46%"
        "qwen3-dummy  ready         1    0    142  18ms  45ms 6.1ms  18ms   2%   98%  48%"
        "                                                                                "
        "GPU NAME                  MEMORY  UTIL        POWER   TEMP                      "
        "0   Stand-in 0  72.0 of 80.0 GiB   97% 612 of 700 W   61 C                      "
        "1   Stand-in 1  73.0 of 80.0 GiB   98% 612 of 700 W   62 C                      "
        "                                                                                "
        "                                                                                "
        "                                                                                "
        "                                                                                "
        "                                                                                "
        "                                                                                "
        "                                                                                "
        "                                                                                "
        "                                                                                "
        "tokens a second, 156 at most                                                    "
        " █                                                                              "
        "▇█                                                                              "
        "██                                                                              "
        "██                                                                              "
        "TTFT: first token, ITL: between tokens; p50 and p95 over 15s   q quits          "
    "#]],
    );
}

#[test]
fn a_wide_terminal_shows_more() {
    check(
        &frame(&view(), &live(), 120, 12),
        expect![[r#"
        "minisgld 0.1.0  up 1h01m  serving 127.0.0.1:8000   2 models ready   4 running, 0 waiting, 156 tok/s                     "
        "                                                                                                                        "
        "MODEL                        STATE       RUN WAIT  TOK/S  TTFT   p95   ITL   p95 QUEUE   p95   E2E   p95   KV CACHE HITS"
        "smollm2                      ready         3    0     13  1.0s  2.5s 150ms 199ms 0.5ms 0.9ms  9.0s   12s   1%    5%  46%"
        "qwen3-dummy                  ready         1    0    142  18ms  45ms 6.1ms  18ms 0.5ms 0.9ms 525ms 772ms   2%   98%  48%"
        "                                                                                                                        "
        "GPU NAME                  MEMORY  UTIL        POWER   TEMP                                                              "
        "0   Stand-in 0  72.0 of 80.0 GiB   97% 612 of 700 W   61 C                                                              "
        "1   Stand-in 1  73.0 of 80.0 GiB   98% 612 of 700 W   62 C                                                              "
        "                                                                                                                        "
        "                                                                                                                        "
        "TTFT: first token, ITL: between tokens; p50 and p95 over 15s   q quits                                                  "
    "#]],
    );
}

#[test]
fn a_first_look_has_latencies_since_the_load() {
    let first = History::default().add(look(NOW, Instant::now()));
    check(
        &text(&first, 80),
        expect![[r#"
        minisgld 0.1.0  up 1h01m   2 models ready   4 running, 0 waiting, 156 tok/s

        MODEL        STATE       RUN WAIT  TOK/S  TTFT   p95   ITL   p95   KV CACHE HITS
        smollm2      ready         3    0     13 800ms  2.5s 139ms 198ms   1%    5%  46%
        qwen3-dummy  ready         1    0    142  19ms  48ms 6.9ms  20ms   2%   98%  48%

        GPU NAME                  MEMORY  UTIL        POWER   TEMP
        0   Stand-in 0  72.0 of 80.0 GiB   97% 612 of 700 W   61 C
        1   Stand-in 1  73.0 of 80.0 GiB   98% 612 of 700 W   62 C

        TTFT: first token, ITL: between tokens; p50 and p95 since the load
    "#]],
    );
}

#[test]
fn percentiles_are_of_the_last_minute() {
    let (mut history, begin) = (History::default(), Instant::now());
    let at = |seconds| begin + Duration::from_secs(seconds);
    let window = |view: View| view.window.map(|window| window.as_secs());
    assert_eq!(window(history.add(look(BEFORE, at(0)))), None);
    for seconds in 1..=60 {
        assert_eq!(window(history.add(look(BEFORE, at(seconds)))), Some(seconds));
    }
    let view = history.add(look(NOW, at(61)));
    assert_eq!(view.models[0].first_token, self::view().models[0].first_token);
    assert_eq!(window(history.add(look(NOW, at(62)))), Some(60));
    // Nothing came in a minute: nothing is known.
    let view = history.add(look(NOW, at(200)));
    let view = View { trend: Vec::new(), ..view };
    assert_eq!((view.models[0].first_token.p50, window(view)), (None, Some(138)));
}

#[test]
fn trouble_and_models_that_are_not_ready_are_told() {
    let mut view = view();
    view.gpus.clear();
    view.models[0].state = ModelState::Loading;
    view.models[0].reason = Some("read weights 3.0 GiB of 61.0 GiB".into());
    view.models[1].state = ModelState::Failed;
    view.models[1].reason = Some("the worker was killed\nby signal 9".into());
    let trouble = Some("no daemon answers on /run/x: nobody listens\nstart it".to_string());
    check(
        &frame(&view, &State { trouble, ..live() }, 80, 9),
        expect![[r#"
        "minisgld 0.1.0  up 1h01m   0 models ready, 2 not   4 running, 0 waiting, 156 tok"
        "                                                                                "
        "MODEL        STATE       RUN WAIT  TOK/S  TTFT   p95   ITL   p95   KV CACHE HITS"
        "smollm2      loading       3    0     13  1.0s  2.5s 150ms 199ms   1%    5%  46%"
        "qwen3-dummy  failed        1    0    142  18ms  45ms 6.1ms  18ms   2%   98%  48%"
        "smollm2: read weights 3.0 GiB of 61.0 GiB                                       "
        "qwen3-dummy: the worker was killed by signal 9                                  "
        "                                                                                "
        "no daemon answers on /run/x: nobody listens                                     "
    "#]],
    );
}

#[test]
fn many_models_scroll_and_a_small_terminal_does_no_harm() {
    let mut view = view();
    view.gpus.clear();
    let model = view.models[0].clone();
    let named =
        |n| super::view::Model { name: format!("org/some-long-family-name-{n}B"), ..model.clone() };
    view.models = (0..20).map(named).collect();
    check(
        &frame(&view, &State { first: 15, ..live() }, 80, 9),
        expect![[r#"
        "minisgld 0.1.0  up 1h01m   20 models ready   60 running, 0 waiting, 156 tok/s   "
        "                                                                                "
        "MODEL        STATE       RUN WAIT  TOK/S  TTFT   p95   ITL   p95   KV CACHE HITS"
        "…ly-name-15B ready         3    0     13  1.0s  2.5s 150ms 199ms   1%    5%  46%"
        "…ly-name-16B ready         3    0     13  1.0s  2.5s 150ms 199ms   1%    5%  46%"
        "…ly-name-17B ready         3    0     13  1.0s  2.5s 150ms 199ms   1%    5%  46%"
        "…ly-name-18B ready         3    0     13  1.0s  2.5s 150ms 199ms   1%    5%  46%"
        "…ly-name-19B ready         3    0     13  1.0s  2.5s 150ms 199ms   1%    5%  46%"
        "p50 and p95 over 15s   arrows: 15 more   q quits                                "
    "#]],
    );
    for (width, height) in [(1, 1), (10, 3), (40, 2), (300, 100)] {
        frame(&view, &State { first: 99, ..live() }, width, height);
        frame(&self::view(), &live(), width, height);
    }
    view.models.clear();
    assert!(text(&view, 40).contains("no model is loaded"));
}
