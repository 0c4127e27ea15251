//! Seeded weights for a model of which only `config.json` is there: the same shapes and speed as the
//! real one, and a fixed function of seed, tensor name and element index, so that every way of
//! sharding sees the same model.

use std::collections::HashMap;

use super::made::{DummyBytes, DummyTensor};
use super::tensor::TensorPart;
use super::window::Window;
use super::{Part, TensorSpec, WeightError, WeightSource};
use crate::scheme::{Code, Element};

/// Weights drawn from a seed, in bf16 or as the codes of their scheme: norms are 1, all else is about N(0, 0.02).
pub struct DummyWeights {
    seed: u64,
    tensors: HashMap<String, TensorSpec>,
    /// Of the model's matrices.
    scheme: Option<&'static str>,
}

impl DummyWeights {
    /// The dummy weights of a model; another seed gives other weights.
    pub fn new(tensors: &[TensorSpec], seed: u64) -> DummyWeights {
        let named = |tensor: &TensorSpec| (tensor.name.clone(), tensor.clone());
        let scheme = tensors.iter().find_map(|tensor| tensor.scheme);
        DummyWeights { seed, tensors: tensors.iter().map(named).collect(), scheme }
    }
}

impl WeightSource for DummyWeights {
    fn part(
        &self,
        name: &str,
        shape: &[usize],
        part: &Part,
    ) -> Result<TensorPart<'_>, WeightError> {
        let known = self
            .tensors
            .get(name)
            .ok_or_else(|| WeightError::UnknownTensor { name: name.to_owned() })?;
        if known.shape != shape {
            return Err(WeightError::WrongShape {
                name: name.to_owned(),
                found: known.shape.clone(),
                asked: shape.to_vec(),
            });
        }
        let window = Window::new(name, shape, part)?;
        let bytes = |code| DummyBytes::named(name, self.seed, code);
        Ok(match known.element {
            Element::Float => TensorPart::made(window, DummyTensor::named(name, self.seed)),
            Element::E4m3 => TensorPart::made_bytes(window, bytes(Code::E4m3)),
            Element::E2m1Pairs => TensorPart::made_bytes(window, bytes(Code::E2m1)),
            Element::Scale => TensorPart::constant(window, DummyBytes::multiplier(Code::E4m3), 4),
            Element::E8m0 => TensorPart::constant(window, DummyBytes::multiplier(Code::E2m1), 1),
        })
    }

    fn bytes_total(&self) -> u64 {
        self.tensors.values().map(TensorSpec::bytes).sum()
    }

    fn dtype(&self) -> &'static str {
        self.scheme.unwrap_or("bf16")
    }
}
