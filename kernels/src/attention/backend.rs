//! Which backend serves which rows. How a choice is written (`--attn PREFILL,DECODE`) is `proto`'s.

use super::{
    AttentionBatch, AttentionError, AttentionLimits, Heads, KvType, PagedAttention,
    PagedAttentionArgs, PagedPrefill,
};
use crate::{Device, LaunchError};

/// A kind of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// FlashInfer.
    Fi,
    /// In the style of FlashAttention: FlashAttention-3 for prefill, this crate's own kernel for decode.
    Fa,
}

impl Backend {
    /// Whether this backend can serve prefill rows: `fi` always, `fa` on Hopper with a bf16 cache.
    pub fn supports_prefill(self, device: &Device, kv: KvType) -> bool {
        self == Backend::Fi || (PagedPrefill::available(device) && kv == KvType::Bf16)
    }
}

/// What was asked for; `None` leaves the choice to what is faster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// For prefill rows.
    pub prefill: Option<Backend>,
    /// For decode rows.
    pub decode: Option<Backend>,
}

/// Prefill rows, by the backend that was asked for or the one that is faster for a step and a window.
pub struct Prefill {
    /// For all windows.
    fi: Option<PagedAttention>,
    /// For all windows, or where there is a choice for those that are wide enough.
    fa: Option<PagedPrefill>,
    /// Of the planned step.
    chosen: Backend,
}

impl Prefill {
    /// Allocates what the backend `wanted` needs for layers of these windows; with `None`, what either needs that can
    /// serve this.
    ///
    /// # Errors
    /// The backend cannot serve this cache on this GPU, there is no kernel for these heads, or no memory.
    pub fn new(
        device: &Device,
        heads: Heads,
        kv: KvType,
        limits: AttentionLimits,
        windows: &[Option<u32>],
        wanted: Option<Backend>,
    ) -> Result<Prefill, AttentionError> {
        let fa = wanted.unwrap_or(Backend::Fa) == Backend::Fa;
        let can = Backend::Fa.supports_prefill(device, kv);
        if fa && !can && wanted.is_some() {
            let what = format!(
                "fa serves prefill on Hopper with a bf16 cache, this is {} with {kv:?}; use --attn fi",
                device.name()
            );
            return Err(LaunchError::Argument { op: "attention", what }.into());
        }
        // A backend that was asked for has no choice.
        let suits = |window: Option<u32>| wanted.is_some() || PagedPrefill::suits_window(window);
        let wide: Vec<_> = windows.iter().copied().filter(|&window| suits(window)).collect();
        let fa = match fa && can && !wide.is_empty() {
            true => Some(PagedPrefill::new(device, heads, limits, &wide)?),
            false => None,
        };
        let fi = match wanted {
            Some(Backend::Fa) => None,
            _ => Some(PagedAttention::new(device, heads, kv, limits, windows)?),
        };
        Ok(Prefill { fi, fa, chosen: Backend::Fi })
    }

    /// As [`PagedAttention::plan`], for rows that are not recorded in a graph.
    ///
    /// # Errors
    /// As [`PagedAttention::plan`].
    pub fn plan(
        &mut self,
        device: &Device,
        batch: AttentionBatch<'_>,
    ) -> Result<Backend, AttentionError> {
        match (&mut self.fi, &mut self.fa) {
            (fi, Some(fa)) if fi.is_none() || fa.suits(batch) => {
                self.chosen = Backend::Fa;
                fa.plan(device, batch)?;
                if let Some(fi) = fi {
                    fi.plan_some(device, batch, |window| !fa.has(window))?;
                }
            }
            (Some(fi), _) => {
                self.chosen = Backend::Fi;
                fi.plan(device, batch)?;
            }
            _ => {} // `new` makes one of them at least.
        }
        Ok(self.chosen)
    }

    /// As [`PagedAttention::launch`].
    ///
    /// # Errors
    /// As [`PagedAttention::launch`].
    ///
    /// # Safety
    /// As [`PagedAttention::launch`].
    pub unsafe fn launch(
        &self,
        device: &Device,
        args: PagedAttentionArgs<'_>,
    ) -> Result<(), AttentionError> {
        match (self.chosen, &self.fi, &self.fa) {
            // SAFETY: the caller's promise.
            (Backend::Fa, _, Some(fa)) if fa.has(args.view.window) => unsafe {
                fa.launch(device, args)
            },
            // SAFETY: the caller's promise.
            (_, Some(fi), _) => unsafe { fi.launch(device, args) },
            // SAFETY: the caller's promise; it refuses the window.
            (_, None, Some(fa)) => unsafe { fa.launch(device, args) },
            _ => Ok(()), // `new` makes what `plan` chooses.
        }
    }
}
