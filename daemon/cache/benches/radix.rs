//! Processor times of the prefix cache: `cargo bench -p minisgl-cache`.
//!
//! The tree holds 256 sequences of 32,768 tokens that share beginnings of random length, published
//! in chunks of 512 tokens as a scheduler does.

mod processor_time;

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use minisgl_cache::{Mode, PageTable, PrefixCache, Windows};
use processor_time::ProcessorTime;

const LEN: usize = 32_768;
const SEQUENCES: usize = 256;
const CHUNK: usize = 512;

fn sequences() -> Vec<Vec<u32>> {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u32
    };
    let mut all: Vec<Vec<u32>> = Vec::new();
    for i in 0..SEQUENCES {
        let mut tokens = match i {
            0 => Vec::new(),
            _ => all[random() as usize % i][..random() as usize % LEN].to_vec(),
        };
        tokens.resize_with(LEN, || random() % 50_000);
        all.push(tokens);
    }
    all
}

fn filled(page_size: usize, sequences: &[Vec<u32>]) -> PrefixCache {
    let pages = sequences.len() * LEN / page_size + LEN;
    let mut cache =
        PrefixCache::new(pages as u32, page_size as u32, Windows::default(), Mode::Radix);
    for tokens in sequences {
        let mut table = cache.match_prefix(tokens);
        let lacking = LEN / page_size - table.pages().len();
        assert!(cache.grow(&mut table, lacking));
        for end in (CHUNK..=LEN).step_by(CHUNK) {
            cache.publish(&mut table, &tokens[..end]);
        }
    }
    cache
}

fn bench(c: &mut Criterion<ProcessorTime>) {
    let sequences = sequences();
    for page_size in [1, 16] {
        let mut cache = filled(page_size, &sequences);
        let mut turn = 0;
        c.bench_function(&format!("match 32768 tokens, page size {page_size}"), |b| {
            b.iter(|| {
                turn += 1;
                let table = cache.match_prefix(black_box(&sequences[turn % SEQUENCES]));
                assert_eq!(table.pages().len(), LEN / page_size);
            });
        });

        let cell = RefCell::new(cache);
        let mut fresh = 1u32 << 20;
        c.bench_function(&format!("insert {CHUNK} tokens, page size {page_size}"), |b| {
            let setup = || {
                fresh += 1;
                let mut tokens = sequences[0].clone();
                tokens.resize(LEN + CHUNK, fresh);
                let mut table = cell.borrow_mut().match_prefix(&sequences[0]);
                assert!(cell.borrow_mut().grow(&mut table, CHUNK / page_size));
                (tokens, table)
            };
            let routine = |(tokens, mut table): (Vec<u32>, PageTable)| {
                cell.borrow_mut().publish(&mut table, &tokens);
                (tokens, table)
            };
            b.iter_batched(setup, routine, BatchSize::PerIteration);
        });

        // Nothing is free any more: each page that is handed out evicts one.
        let free = cell.borrow_mut().counts().free;
        let mut rest = cell.borrow_mut().match_prefix(&[]);
        assert!(cell.borrow_mut().grow(&mut rest, free));
        c.bench_function(&format!("evict and insert 1 page, page size {page_size}"), |b| {
            let mut tokens = vec![0; page_size];
            let mut cache = cell.borrow_mut();
            b.iter(|| {
                fresh += 1;
                tokens[0] = fresh;
                let mut table = cache.match_prefix(&[]);
                assert!(cache.grow(&mut table, 1));
                cache.publish(&mut table, &tokens);
            });
        });
    }
}

fn main() {
    let mut c = Criterion::default()
        .with_measurement(ProcessorTime)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    bench(&mut c);
    c.final_summary();
}
