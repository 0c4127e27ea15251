//! Words as they lie and entries each in its place, and nothing else written.

use minisgl_kernels::ops::Bring;

use crate::support::Gpu;

pub fn bring(gpu: &mut Gpu) {
    for (count, pairs) in [(4, 0), (4, 1), (1020, 300), (1024, 1), (4096, 8192), (131_072, 7)] {
        let words: Vec<i32> = (0..count).map(|_| gpu.random.bits() as i32).collect();
        let before: Vec<i32> = (0..60_000).map(|_| gpu.random.bits() as i32).collect();
        let mut expected = before.clone();
        let mut list = Vec::new();
        for pair in 0..pairs {
            let value = gpu.random.bits() as i32;
            // Each entry once; some are not in the table.
            let at = match gpu.random.below(8) {
                0 => gpu.random.of(&[before.len() as i32, i32::MAX, -1, i32::MIN]),
                _ => (pair * 7 + gpu.random.below(7)) as i32,
            };
            list.extend([at, value]);
            if let Some(entry) = usize::try_from(at).ok().and_then(|at| expected.get_mut(at)) {
                *entry = value;
            }
        }
        // What lies behind the words stays.
        let mut to = gpu.upload(&vec![-9; count + 8]);
        let mut table = gpu.upload(&before);
        let list = gpu.upload(&list);
        Bring {
            words: (&gpu.upload(&words)).into(),
            to: (&mut to.slice_mut(..count)).into(),
            pairs: (&list).into(),
            table: (&mut table).into(),
        }
        .launch(&gpu.device)
        .unwrap();
        let to = gpu.download(&to);
        assert!(to[..count] == words && to[count..] == [-9; 8], "{count} words");
        assert!(gpu.download(&table) == expected, "{pairs} pairs");
    }
}
