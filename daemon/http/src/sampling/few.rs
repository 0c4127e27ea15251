//! The sampling fields of Anthropic's surface, and those beside them that no other field stands for.

use super::{OneOrMany, SamplingFields, stop_strings};
use crate::error::ApiError;
use crate::format::FormatFields;
use crate::json::{Int, List, SHORT_LIST_MAX, fields};
use crate::settings::Settings;

fields! {
    /// Few of many.
    pub struct FewFields {
        temperature: f64,
        top_p: f64,
        top_k: Int,
        stop_sequences: List<String, SHORT_LIST_MAX>,
        min_p: f64,
        repetition_penalty: f64,
        seed: Int,
        priority: Int,
    }
}

impl FewFields {
    /// All fields, of which these are set, and the output's form.
    ///
    /// # Errors
    /// 400: stop sequences are empty, too long or too many.
    pub fn among_all(
        self,
        format: FormatFields,
        settings: &Settings,
    ) -> Result<SamplingFields, ApiError> {
        let stop = self.stop_sequences.map(|List(many)| OneOrMany::Many(many));
        Ok(SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: Some(OneOrMany::Many(stop_strings("stop_sequences", stop, settings)?)),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            priority: self.priority,
            format,
            ..SamplingFields::default()
        })
    }
}
