//! What the rows of a test see: windows and sinks, on the CPU and on the GPU.

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::attention::View;

use crate::support::Gpu;

#[derive(Clone, Default)]
pub struct Seen {
    pub window: Option<u32>,
    /// Of each query head; natural logarithms.
    pub sinks: Option<(Vec<bf16>, CudaSlice<bf16>)>,
}

impl Seen {
    pub const ALL: Seen = Seen { window: None, sinks: None };

    /// Sinks from such that hardly count to such that hardly anything else does.
    pub fn new(gpu: &mut Gpu, q_heads: usize, window: Option<u32>, with_sinks: bool) -> Seen {
        Seen { window, sinks: with_sinks.then(|| gpu.normal(q_heads, 3.0)) }
    }

    pub fn view(&self) -> View<'_> {
        let sinks = self.sinks.as_ref().map(|(_, sinks)| sinks.into());
        View { window: self.window, sinks }
    }

    /// The first token that the last of `tokens` sees.
    pub fn first(&self, tokens: usize) -> usize {
        self.window.map_or(0, |window| tokens.saturating_sub(window as usize))
    }

    /// Each score's share of one head's attention.
    pub fn softmax(&self, scores: &[f64], head: usize) -> Vec<f64> {
        let sink = self.sinks.as_ref().map_or(f64::NEG_INFINITY, |(sinks, _)| sinks[head].to_f64());
        let highest = scores.iter().copied().fold(sink, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
        let sum = sum + (sink - highest).exp();
        scores.iter().map(|score| (score - highest).exp() / sum).collect()
    }

    pub fn describe(&self) -> String {
        format!("window {:?}, sinks {}", self.window, self.sinks.is_some())
    }
}
