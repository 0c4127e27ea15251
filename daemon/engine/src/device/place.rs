//! The choice of GPUs for the ranks of a model.
//!
//! Owns: the order of preference: GPUs that reach each other's memory, over the best links, with the most of
//! their own free. Must never: open a GPU.

use std::cmp::Reverse;

use minisgl_kernels::{peers, probe};
use minisgl_proto::LoadOptions;

/// GPUs of one machine at most that every set of is looked at; of more, the first.
const CANDIDATES_MAX: usize = 16;

/// The driver's numbers of the GPUs that `options` ask for, of `count`, or of those that suit best.
pub(super) fn gpus(options: &LoadOptions, count: usize) -> Result<Vec<usize>, String> {
    let tp = options.tp as usize;
    if !options.gpus.is_empty() {
        return named(&options.gpus, tp, count);
    }
    let taken = |gpu: &usize| options.gpus_taken.contains(&(*gpu as u32));
    let candidates: Vec<usize> = (0..count).filter(|gpu| !taken(gpu)).collect();
    if candidates.len() < tp {
        let gpus = if tp == 1 { "a GPU".to_owned() } else { format!("{tp} GPUs") };
        let free = candidates.len();
        let unload = match options.gpus_taken.is_empty() {
            true => String::new(),
            false => {
                ": unload a model that has others, or name GPUs with --gpus and share their memory \
                 with --memory-ratio or --kv-tokens"
                    .to_owned()
            }
        };
        return Err(format!(
            "tp {tp} needs {gpus}, and {free} of this machine's {count} are free{unload}"
        ));
    }
    if candidates.len() == tp {
        return Ok(candidates);
    }
    let candidates = candidates.into_iter().take(CANDIDATES_MAX);
    let all: Vec<Candidate> = candidates.map(Candidate::look).collect();
    let link = |from: usize, to: usize| peers::link(from, to).unwrap_or(None);
    Ok(best(&all, tp, link))
}

fn named(gpus: &[u32], tp: usize, count: usize) -> Result<Vec<usize>, String> {
    if gpus.len() != tp {
        return Err(format!("tp {tp} needs {tp} GPUs, and {} are named", gpus.len()));
    }
    for (index, gpu) in gpus.iter().enumerate() {
        if gpus[..index].contains(gpu) {
            return Err(format!("GPU {gpu} is named twice"));
        }
        if *gpu as usize >= count {
            let last = count - 1;
            return Err(format!("there is no GPU {gpu}: the driver shows 0 to {last}"));
        }
    }
    Ok(gpus.iter().map(|&gpu| gpu as usize).collect())
}

/// A GPU that could be taken.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    ordinal: usize,
    free_bytes: u64,
}

impl Candidate {
    fn look(ordinal: usize) -> Candidate {
        let free_bytes = probe::gpu(ordinal).ok().and_then(|gpu| gpu.free_bytes);
        Candidate { ordinal, free_bytes: free_bytes.unwrap_or(0) }
    }
}

/// The best `count` of the candidates: fewest pairs that do not reach each other, then the best links (`link`
/// gives the driver's rank of one, 0 the best, `None` for no link), then the most free memory where there is
/// least, in tens of percents, then the lowest numbers.
fn best(all: &[Candidate], count: usize, link: impl Fn(usize, usize) -> Option<u32>) -> Vec<usize> {
    let sets = (0u32..1 << all.len()).filter(|set| set.count_ones() as usize == count);
    let chosen = sets.min_by_key(|set| {
        let set: Vec<&Candidate> =
            (0..all.len()).filter(|i| set >> i & 1 == 1).map(|i| &all[i]).collect();
        let (mut apart, mut links) = (0, 0);
        for (index, from) in set.iter().enumerate() {
            for to in &set[..index] {
                match link(from.ordinal, to.ordinal) {
                    Some(rank) => links += rank,
                    None => apart += 1,
                }
            }
        }
        let least = set.iter().map(|gpu| gpu.free_bytes).min().unwrap_or(0);
        let most = all.iter().map(|gpu| gpu.free_bytes).max().unwrap_or(0).max(1);
        let numbers: Vec<usize> = set.iter().map(|gpu| gpu.ordinal).collect();
        // Rounded, so that a little less memory is no reason.
        let tenths = (u128::from(least) * 10 + u128::from(most) / 2) / u128::from(most);
        (apart, links, Reverse(tenths), numbers)
    });
    let set = chosen.unwrap_or(0);
    (0..all.len()).filter(|i| set >> i & 1 == 1).map(|i| all[i].ordinal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(tp: u32, gpus: &[u32], taken: &[u32]) -> LoadOptions {
        let (gpus, gpus_taken) = (gpus.to_vec(), taken.to_vec());
        LoadOptions { tp, gpus, gpus_taken, ..LoadOptions::default() }
    }

    #[test]
    fn gpus_that_are_named_are_taken_in_that_order_or_refused() {
        let of = |tp, named: &[u32]| gpus(&options(tp, named, &[]), 4);
        assert_eq!(of(2, &[3, 1]).unwrap(), [3, 1]);
        assert_eq!(of(2, &[3]).unwrap_err(), "tp 2 needs 2 GPUs, and 1 are named");
        assert_eq!(of(2, &[1, 1]).unwrap_err(), "GPU 1 is named twice");
        assert_eq!(of(1, &[4]).unwrap_err(), "there is no GPU 4: the driver shows 0 to 3");
    }

    #[test]
    fn gpus_of_other_models_are_left_alone() {
        assert_eq!(gpus(&options(2, &[], &[0, 2]), 4).unwrap(), [1, 3]);
        let refused = gpus(&options(2, &[], &[0, 2, 3]), 4).unwrap_err();
        assert!(
            refused.starts_with("tp 2 needs 2 GPUs, and 1 of this machine's 4 are free: unload"),
            "{refused}"
        );
        let refused = gpus(&options(8, &[], &[]), 4).unwrap_err();
        assert_eq!(refused, "tp 8 needs 8 GPUs, and 4 of this machine's 4 are free");
    }

    #[test]
    fn linked_gpus_come_first_then_free_ones() {
        let candidate =
            |(ordinal, free): (usize, u64)| Candidate { ordinal, free_bytes: free << 30 };
        let all: Vec<Candidate> =
            [(0, 20), (1, 79), (2, 80), (3, 80), (4, 78), (5, 10)].map(candidate).into();
        let nothing = |_, _| None;
        assert_eq!(best(&all, 1, nothing), [1], "nearly the same memory: the lowest number");
        assert_eq!(best(&all, 2, nothing), [1, 2]);
        // Pairs: 0 with 3 by the best link, 4 with 2 by another.
        let pairs = |from: usize, to: usize| match (from.min(to), from.max(to)) {
            (0, 3) => Some(0),
            (2, 4) => Some(1),
            _ => None,
        };
        assert_eq!(best(&all, 2, pairs), [0, 3]);
        assert_eq!(best(&all[1..], 2, pairs), [2, 4]);
        assert_eq!(best(&all, 6, pairs), [0, 1, 2, 3, 4, 5]);
    }
}
