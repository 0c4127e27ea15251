//! The work list, walked as the kernel walks it: every token of every request once, in order.

use super::*;

/// What one team does of one request.
#[derive(Debug, PartialEq)]
struct Segment {
    team: u32,
    row: u32,
    tokens: std::ops::Range<u32>,
    /// Chunk, of how many.
    chunk: (u32, u32),
}

/// The walk of `cu/decode/walk.cuh`.
fn walk(planner: &DecodePlanner, window: Option<u32>, work: &[i32]) -> Vec<Segment> {
    let rows = &work[TEAM_WORDS * planner.teams as usize..];
    let mut segments = Vec::new();
    for team in 0..planner.teams {
        let words = &work[TEAM_WORDS * team as usize..][..TEAM_WORDS];
        let words: Vec<u32> = words.iter().map(|&word| word as u32).collect();
        let (mut at, end, mut row, share) = (words[0], words[1], words[2], words[3]);
        let mut of_row = [words[4], words[5], words[6], words[7]];
        while at < end {
            let [base, stride, len, _] = of_row;
            let (from, units) = (at - base, units_of(len, window));
            let skipped = window.map_or(0, |window| len.saturating_sub(window)) / 16;
            if from >= units {
                at = at.max(base + stride);
                if at < end {
                    row += 1;
                    of_row = std::array::from_fn(|i| rows[ROW_WORDS * row as usize + i] as u32);
                }
                continue;
            }
            let to = units.min(from + end - at);
            let first = base / share;
            let tokens = (skipped + from) * 16..len.min((skipped + to) * 16);
            let chunks = (base + units - 1) / share - first + 1;
            segments.push(Segment { team, row, tokens, chunk: (team - first, chunks) });
            at = if to == units { base + stride } else { end };
        }
    }
    segments
}

/// Checks a plan; gives the most units of a team.
fn check(planner: &DecodePlanner, lens: &[u32], rows: usize) -> u32 {
    check_window(planner, lens, None, rows)
}

fn check_window(planner: &DecodePlanner, lens: &[u32], window: Option<u32>, rows: usize) -> u32 {
    let page_starts: Vec<i32> = (0..lens.len() as i32).map(|row| row * 7).collect();
    let mut work = vec![-1; planner.words(rows)];
    planner.plan(lens, &page_starts, window, &mut work).unwrap();
    for (row, words) in work[TEAM_WORDS * planner.teams as usize..].chunks(ROW_WORDS).enumerate() {
        let live = lens.get(row).is_some_and(|&len| len > 0);
        let expected = if live { (lens[row] as i32, page_starts[row]) } else { (0, 0) };
        assert_eq!((words[2], words[3]), expected);
    }
    let mut segments = walk(planner, window, &work);
    let mut most = vec![0; planner.teams as usize];
    for segment in &segments {
        most[segment.team as usize] += segment.tokens.len().div_ceil(UNIT) as u32;
    }
    // The merge finds its chunks by these rules: at most one chunk that goes on from the team before, at most
    // one that goes on in the next.
    for team in 0..planner.teams {
        let of_team = || segments.iter().filter(|segment| segment.team == team);
        assert!(of_team().filter(|segment| segment.chunk.0 > 0).count() <= 1);
        let goes_on = |segment: &&Segment| segment.chunk.0 == 0 && segment.chunk.1 > 1;
        assert!(of_team().filter(goes_on).count() <= 1);
    }
    segments.sort_by_key(|segment| (segment.row, segment.tokens.start));
    let mut segments = segments.into_iter().peekable();
    for (row, &len) in lens.iter().enumerate().filter(|&(_, &len)| len > 0) {
        // From the unit of the first token in the window on.
        let begin = window.map_or(0, |window| len.saturating_sub(window)) / 16 * 16;
        let (mut at, mut chunk, mut first, mut chunks) = (begin, 0, None, 0);
        while at < len {
            let segment = segments.next().unwrap();
            let got = (segment.row, segment.tokens.start, segment.chunk.0);
            assert_eq!(got, (row as u32, at, chunk), "{lens:?}");
            assert_eq!(segment.team, *first.get_or_insert(segment.team) + chunk);
            assert!(segment.tokens.end > at);
            (at, chunk, chunks) = (segment.tokens.end, chunk + 1, segment.chunk.1);
        }
        assert_eq!((at, chunk), (len, chunks), "{lens:?}");
    }
    assert_eq!(segments.next(), None);
    most.into_iter().max().unwrap()
}

fn planner(teams: u32) -> DecodePlanner {
    DecodePlanner::new(teams, DecodeTuning::default())
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn every_token_is_in_one_chunk() {
    let mut state = 7;
    for round in 0..3000_u32 {
        let below = |state: &mut u64, n: u64| random(state) % n;
        let rows = 1 + below(&mut state, if round % 10 == 0 { 1024 } else { 40 }) as usize;
        let used = rows - below(&mut state, rows as u64) as usize;
        let scale = 1 + below(&mut state, 17);
        let lens: Vec<u32> =
            (0..used).map(|_| below(&mut state, (1 << scale) + 1) as u32).collect();
        let teams = 1 + below(&mut state, 300) as u32;
        let (begin, share_min) = (below(&mut state, 5), 1 + below(&mut state, 8));
        let (begin, share_min) = (begin as u32, share_min as u32);
        let tuning = DecodeTuning { begin, share_min, ..DecodeTuning::default() };
        let window = match round % 3 {
            0 => None,
            _ => {
                let scale = below(&mut state, 13);
                Some(1 + below(&mut state, 1 << scale) as u32)
            }
        };
        check_window(&DecodePlanner::new(teams, tuning), &lens, window, rows);
    }
}

/// A window costs what it holds, however long the request; and no more than the request, however wide the window.
#[test]
fn a_window_is_all_that_is_shared_out() {
    assert_eq!(check_window(&planner(1), &[32_768], Some(128), 1), 8);
    assert_eq!(check_window(&planner(1), &[32_769], Some(128), 1), 9);
    assert_eq!(check_window(&planner(33), &[32_768; 33], Some(128), 33), 8);
    assert_eq!(check_window(&planner(16), &[1000], Some(1), 1), 1);
    assert_eq!(
        check_window(&planner(16), &[1000], Some(1 << 20), 1),
        check(&planner(16), &[1000], 1)
    );
    assert_eq!(check_window(&planner(1), &[17], Some(2), 1), 2);
    assert_eq!(check_window(&planner(1), &[17], Some(1), 1), 1);
}

#[test]
fn one_request_is_spread_over_the_teams() {
    // 63 units.
    assert_eq!(check(&planner(16), &[1000], 1), 4);
    assert_eq!(check(&planner(33), &[1000], 4), 4);
    assert_eq!(check(&planner(33), &[8000], 1), 16);
    assert_eq!(check(&planner(16), &[1], 1), 1);
}

#[test]
fn shares_are_nearly_equal_whatever_the_mix() {
    let mut state = 3;
    for requests in [32, 64, 256] {
        let lens: Vec<u32> =
            (0..requests).map(|_| 100 + (random(&mut state) % 1500) as u32).collect();
        let units: u32 = lens.iter().map(|&len| units_of(len, None)).sum();
        let most = check(&planner(33), &lens, requests as usize);
        let even = f64::from(units) / 33.0;
        assert!(f64::from(most) < 1.08 * even + 2.0, "{requests} requests: {most} of {even}");
    }
    let mut lens = vec![20; 100];
    lens[50] = 131_072;
    assert!(check(&planner(33), &lens, 128) < 270);
}

#[test]
fn nothing_to_do_is_a_plan_too() {
    assert_eq!(check(&planner(33), &[], 4), 0);
    assert_eq!(check(&planner(33), &[0, 0, 0], 4), 0);
    assert_eq!(check(&planner(132), &[0, 5, 0], 4), 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let planner = planner(33);
    let mut work = vec![0; planner.words(2)];
    assert!(planner.plan(&[1, 2, 3], &[0, 1, 2], None, &mut work).is_err());
    assert!(planner.plan(&[1, 2], &[0], None, &mut work).is_err());
    assert!(planner.plan(&[1, 1 << 31], &[0, 1], None, &mut work).is_err());
    assert!(planner.plan(&[1, 2], &[0, 1], Some(0), &mut work).is_err());
    let mut work = vec![0; planner.words(17)];
    assert!(planner.plan(&[i32::MAX as u32; 17], &[0; 17], None, &mut work).is_err());
}
