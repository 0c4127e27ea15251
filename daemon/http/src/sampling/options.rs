//! Ollama's `options`: the same sampling by its names. What of them concerns a model's load is the operator's.

use super::SamplingFields;
use super::forms::OneOrMany;
use crate::fields::Route;
use crate::format::FormatFields;
use crate::json::{Column, Int, fields};

fields! {
    /// The fields of `options`.
    pub struct OptionsFields {
        temperature: f64,
        top_k: Int,
        top_p: f64,
        min_p: f64,
        /// -1 is none.
        seed: Int,
        /// Below 0: as many as there is room for.
        num_predict: Int,
        stop: OneOrMany,
        repeat_penalty: f64,
        presence_penalty: f64,
        frequency_penalty: f64,
    }
}

impl Column for OptionsFields {
    const ROUTE: Route = Route::ApiOptions;
}

impl OptionsFields {
    /// The sampling that they and a format ask for, and the limit of the output.
    pub fn sampling(self, format: FormatFields) -> (SamplingFields, Option<Int>) {
        let sampling = SamplingFields {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed.filter(|seed| *seed != Int(-1)),
            stop: self.stop,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            format,
            ..SamplingFields::default()
        };
        (sampling, self.num_predict.map(|Int(tokens)| Int(tokens.max(-1))))
    }
}
