//! Seeded weights for a model of which only `config.json` is there: the same shapes and speed as the
//! real one, and a fixed function of seed, tensor name and element index, so that every way of
//! sharding sees the same model.

use std::collections::HashMap;

use super::made::DummyTensor;
use super::tensor::TensorPart;
use super::window::Window;
use super::{Part, TensorSpec, WeightError, WeightSource};

/// Weights drawn from a seed, in bf16: norms are 1, all else is about N(0, 0.02).
pub struct DummyWeights {
    seed: u64,
    shapes: HashMap<String, Vec<usize>>,
}

impl DummyWeights {
    /// The dummy weights of a model; another seed gives other weights.
    pub fn new(tensors: &[TensorSpec], seed: u64) -> DummyWeights {
        let shape = |tensor: &TensorSpec| (tensor.name.clone(), tensor.shape.clone());
        DummyWeights { seed, shapes: tensors.iter().map(shape).collect() }
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
            .shapes
            .get(name)
            .ok_or_else(|| WeightError::UnknownTensor { name: name.to_owned() })?;
        if known != shape {
            return Err(WeightError::WrongShape {
                name: name.to_owned(),
                found: known.clone(),
                asked: shape.to_vec(),
            });
        }
        let window = Window::new(name, shape, part)?;
        Ok(TensorPart::made(window, DummyTensor::named(name, self.seed)))
    }

    fn bytes_total(&self) -> u64 {
        self.shapes.values().map(|shape| 2 * shape.iter().product::<usize>() as u64).sum()
    }

    fn dtype(&self) -> &'static str {
        "bf16"
    }
}
