//! What tuning found, and its form on disk.

use super::{GemmKind, GemmShape};
use crate::gemm::plan::Algorithm;

/// The fastest way to compute a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tuned {
    /// Of cuBLASLt.
    pub(super) algorithm: Algorithm,
    /// What it takes, in nanoseconds.
    pub(super) nanos: u32,
}

/// A tuned shape as a line: m n k bias kind, nanoseconds, and the algorithm's words in hexadecimal.
pub(super) fn line((shape, tuned): (&GemmShape, &Tuned)) -> String {
    let &GemmShape { m, n, k, bias, kind } = shape;
    let Tuned { algorithm, nanos } = tuned;
    let words: Vec<String> = algorithm.data.iter().map(|word| format!("{word:016x}")).collect();
    let (bias, kind) = (u8::from(bias), kind.name());
    format!("{m} {n} {k} {bias} {kind} {nanos} {}\n", words.join(" "))
}

/// The reverse of [`line`].
pub(super) fn parse(line: &str) -> Option<(GemmShape, Tuned)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [m, n, k, bias, kind, nanos, rest @ ..] = &words[..] else { return None };
    let bias = match *bias {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    let kind = GemmKind::ALL.into_iter().find(|of| of.name() == *kind)?;
    let (m, n, k) = (m.parse().ok()?, n.parse().ok()?, k.parse().ok()?);
    let data: Vec<u64> =
        rest.iter().map(|word| u64::from_str_radix(word, 16)).collect::<Result<_, _>>().ok()?;
    let algorithm = Algorithm { data: data.try_into().ok()? };
    let tuned = Tuned { algorithm, nanos: nanos.parse().ok()? };
    Some((GemmShape { m, n, k, bias, kind }, tuned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_a_damaged_one_does_not() {
        let algorithm = Algorithm { data: [1, 2, 3, u64::MAX, 5, 6, 7, 0] };
        for kind in GemmKind::ALL {
            let shape = GemmShape { m: 5, n: 4096, k: 1024, bias: true, kind };
            let tuned = Tuned { algorithm, nanos: 5_678 };
            let text = line((&shape, &tuned));
            assert_eq!(parse(text.trim_end()), Some((shape, tuned)));
            let word_lost = text.trim_end().rsplit_once(' ').unwrap().0;
            let bad_flag = text.replacen(" 1 ", " 2 ", 1);
            let bad_kind = text.replacen(kind.name(), "f64", 1);
            let no_time = text.replacen("5678", "-", 1);
            for damaged in ["", "1 2 3", word_lost, &bad_flag, &bad_kind, &no_time, "\n"] {
                assert_eq!(parse(damaged.trim_end()), None, "{damaged:?}");
            }
        }
    }
}
