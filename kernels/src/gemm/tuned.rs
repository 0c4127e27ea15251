//! What tuning found, and its form on disk.

use super::{GemmElement, GemmKind, GemmShape};
use crate::gemm::plan::Algorithm;
use crate::ops::{BroadCut, Fp8Product};

/// The fastest way to compute a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tuned {
    /// Of cuBLASLt.
    pub(super) algorithm: Algorithm,
    /// What it takes, in nanoseconds.
    pub(super) nanos: u32,
    /// What [`SkinnyGemm`](crate::ops::SkinnyGemm) takes, where it was timed.
    pub(super) skinny_nanos: Option<u32>,
}

/// A tuned shape as a line: m n k bias kind element, nanoseconds (`-` where not timed), and the algorithm's words in
/// hexadecimal.
pub(super) fn line((shape, tuned): (&GemmShape, &Tuned)) -> String {
    let &GemmShape { m, n, k, bias, kind, element } = shape;
    let Tuned { algorithm, nanos, skinny_nanos } = tuned;
    let skinny = skinny_nanos.map_or_else(|| "-".into(), |nanos| nanos.to_string());
    let words: Vec<String> = algorithm.data.iter().map(|word| format!("{word:016x}")).collect();
    let (bias, kind, element) = (u8::from(bias), kind.name(), element.name());
    format!("{m} {n} {k} {bias} {kind} {element} {nanos} {skinny} {}\n", words.join(" "))
}

/// How a line of our own products begins.
const OWN: &str = "own ";

/// One of our own products of e4m3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ours {
    /// Of few rows.
    Few(Fp8Product),
    /// [`NarrowGemm`](crate::ops::NarrowGemm).
    Narrow,
    /// [`BroadGemm`](crate::ops::BroadGemm).
    Broad(BroadCut),
}

const NARROW: &str = "narrow";

impl Ours {
    fn name(self) -> String {
        match self {
            Ours::Few(product) => product.name().into(),
            Ours::Narrow => NARROW.into(),
            Ours::Broad(cut) => cut.name(),
        }
    }

    fn named(name: &str) -> Option<Ours> {
        if name == NARROW {
            return Some(Ours::Narrow);
        }
        let few = Fp8Product::named(name).map(Ours::Few);
        few.or_else(|| BroadCut::named(name).map(Ours::Broad))
    }
}

/// What one of our own products takes as a line: `own`, m n k bias kind element, which, nanoseconds.
pub(super) fn own_line(shape: &GemmShape, of: Ours, nanos: u32) -> String {
    let &GemmShape { m, n, k, bias, kind, element } = shape;
    let (bias, kind, element) = (u8::from(bias), kind.name(), element.name());
    format!("{OWN}{m} {n} {k} {bias} {kind} {element} {} {nanos}\n", of.name())
}

/// Whether a line is of our own products.
pub(super) fn is_own(line: &str) -> bool {
    line.starts_with(OWN)
}

/// The reverse of [`own_line`].
pub(super) fn parse_own(line: &str) -> Option<(GemmShape, Ours, u32)> {
    let words: Vec<&str> = line.strip_prefix(OWN)?.split(' ').collect();
    let [m, n, k, bias, kind, element, product, nanos] = words[..] else { return None };
    let shape = parse_shape([m, n, k, bias, kind, element])?;
    Some((shape, Ours::named(product)?, nanos.parse().ok()?))
}

fn parse_shape([m, n, k, bias, kind, element]: [&str; 6]) -> Option<GemmShape> {
    let bias = match bias {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    let kind = GemmKind::ALL.into_iter().find(|of| of.name() == kind)?;
    let element = GemmElement::ALL.into_iter().find(|of| of.name() == element)?;
    let (m, n, k) = (m.parse().ok()?, n.parse().ok()?, k.parse().ok()?);
    Some(GemmShape { m, n, k, bias, kind, element })
}

/// The reverse of [`line`].
pub(super) fn parse(line: &str) -> Option<(GemmShape, Tuned)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [m, n, k, bias, kind, element, nanos, skinny, rest @ ..] = &words[..] else { return None };
    let shape = parse_shape([m, n, k, bias, kind, element])?;
    let skinny_nanos = match *skinny {
        "-" => None,
        nanos => Some(nanos.parse().ok()?),
    };
    let data: Vec<u64> =
        rest.iter().map(|word| u64::from_str_radix(word, 16)).collect::<Result<_, _>>().ok()?;
    let algorithm = Algorithm { data: data.try_into().ok()? };
    let tuned = Tuned { algorithm, nanos: nanos.parse().ok()?, skinny_nanos };
    Some((shape, tuned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fp8::ScaleForm;

    #[test]
    fn our_own_products_read_back_and_damaged_ones_do_not() {
        let element = GemmElement::Fp8(ScaleForm::Block);
        let shape =
            GemmShape { m: 2, n: 4096, k: 1024, bias: false, kind: GemmKind::Bf16, element };
        for name in ["skinny-wide", "skinny-slim", "skinny-short", "medium", NARROW, "broad-96-2-3"]
        {
            let product = Ours::named(name).unwrap();
            assert_eq!(product.name(), name);
            let text = own_line(&shape, product, 1_234);
            assert!(is_own(&text) && text.contains(name), "{text}");
            assert_eq!(parse(text.trim_end()), None);
            assert_eq!(parse_own(text.trim_end()), Some((shape, product, 1_234)));
            for damaged in
                ["own ", &text.replacen(name, "large", 1), &text.replacen(" 1234", "", 1)]
            {
                assert_eq!(parse_own(damaged.trim_end()), None, "{damaged:?}");
            }
        }
    }

    #[test]
    fn a_line_reads_back_and_a_damaged_one_does_not() {
        let algorithm = Algorithm { data: [1, 2, 3, u64::MAX, 5, 6, 7, 0] };
        for (kind, element, skinny_nanos) in [
            (GemmKind::AddTo, GemmElement::Bf16, Some(4_321)),
            (GemmKind::F32, GemmElement::Fp8(ScaleForm::Row), None),
            (GemmKind::AddTo, GemmElement::Fp8(ScaleForm::Block), None),
        ] {
            let shape = GemmShape { m: 5, n: 4096, k: 1024, bias: true, kind, element };
            let tuned = Tuned { algorithm, nanos: 5_678, skinny_nanos };
            let text = line((&shape, &tuned));
            assert_eq!(parse(text.trim_end()), Some((shape, tuned)));
            let word_lost = text.trim_end().rsplit_once(' ').unwrap().0;
            let bad_flag = text.replacen(" 1 ", " 2 ", 1);
            let bad_kind = text.replacen(kind.name(), "f64", 1);
            let bad_element = text.replacen(element.name(), "fp8", 1);
            let no_time = text.replacen("5678", "-", 1);
            for damaged in
                ["", "1 2 3", word_lost, &bad_flag, &bad_kind, &bad_element, &no_time, "\n"]
            {
                assert_eq!(parse(damaged.trim_end()), None, "{damaged:?}");
            }
        }
    }
}
