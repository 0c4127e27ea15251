//! Runs of integers: each where it belongs, and nothing else written.

use minisgl_kernels::ops::CopyRuns;

use crate::support::Gpu;

pub fn copy_runs(gpu: &mut Gpu) {
    for count in [1, 2, 16, 300] {
        let from: Vec<i32> = (0..20_000).map(|_| gpu.random.bits() as i32).collect();
        let before: Vec<i32> = (0..400_000).map(|_| gpu.random.bits() as i32).collect();
        let mut expected = before.clone();
        let mut runs = Vec::new();
        for run in 0..count {
            // Each in a place of its own; empty ones, and such as leave an array, among them.
            let len = gpu.random.of(&[0, 1, 2, 255, 256, 257, 1300]);
            let first = gpu.random.below(from.len() - len);
            let at = run * 1310 + gpu.random.below(10);
            let broken = gpu.random.below(8) == 0;
            let (first, at) = match (broken, run % 3) {
                (false, _) => (first as i32, at as i32),
                (true, 0) => ((from.len() - len + 1) as i32, at as i32),
                (true, 1) => (first as i32, (before.len() - len + 1) as i32),
                (true, _) => (-5, at as i32),
            };
            runs.extend([first, at, len as i32, gpu.random.bits() as i32]);
            if !broken {
                let (first, at) = (first as usize, at as usize);
                expected[at..at + len].copy_from_slice(&from[first..first + len]);
            }
        }
        let mut to = gpu.upload(&before);
        CopyRuns {
            runs: (&gpu.upload(&runs)).into(),
            from: (&gpu.upload(&from)).into(),
            to: (&mut to).into(),
            count,
        }
        .launch(&gpu.device)
        .unwrap();
        assert!(gpu.download(&to) == expected, "{count} runs");
    }
}
