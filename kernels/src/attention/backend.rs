//! Which backend serves which rows: `--attn PREFILL,DECODE`.

use std::fmt;
use std::str::FromStr;

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

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Fi => "fi",
            Backend::Fa => "fa",
        })
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

/// A choice that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} names no attention backends: \"auto\", \"fi\" or \"fa\", or two of them as \"prefill,decode\""
)]
pub struct BackendsError(String);

impl FromStr for Backends {
    type Err = BackendsError;

    fn from_str(text: &str) -> Result<Backends, BackendsError> {
        let one = |name: &str| match name.trim() {
            "auto" => Ok(None),
            "fi" => Ok(Some(Backend::Fi)),
            "fa" => Ok(Some(Backend::Fa)),
            _ => Err(BackendsError(text.into())),
        };
        let (prefill, decode) = text.split_once(',').unwrap_or((text, text));
        Ok(Backends { prefill: one(prefill)?, decode: one(decode)? })
    }
}

/// Prefill rows, by the backend that was asked for or the one that is faster for a step.
pub struct Prefill {
    fi: Option<PagedAttention>,
    fa: Option<PagedPrefill>,
    /// Of the planned step.
    chosen: Backend,
}

impl Prefill {
    /// Allocates what the backend `wanted` needs; with `None`, what either needs that can serve this.
    ///
    /// # Errors
    /// The backend cannot serve this cache on this GPU, there is no kernel for these heads, or no memory.
    pub fn new(
        device: &Device,
        heads: Heads,
        kv: KvType,
        limits: AttentionLimits,
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
        let fa = match fa && can {
            true => Some(PagedPrefill::new(device, heads, limits)?),
            false => None,
        };
        let fi = match wanted {
            Some(Backend::Fa) => None,
            _ => Some(PagedAttention::new(device, heads, kv, limits)?),
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
            (Backend::Fi, Some(fi), _) => unsafe { fi.launch(device, args) },
            // SAFETY: the caller's promise.
            (Backend::Fa, _, Some(fa)) => unsafe { fa.launch(device, args) },
            _ => Ok(()), // `new` makes what `plan` chooses.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_one_name_or_two() {
        let parsed =
            |text: &str| text.parse::<Backends>().ok().map(|both| (both.prefill, both.decode));
        assert_eq!(parsed("fa,fi"), Some((Some(Backend::Fa), Some(Backend::Fi))));
        assert_eq!(parsed("fi"), Some((Some(Backend::Fi), Some(Backend::Fi))));
        assert_eq!(parsed("auto, fa"), Some((None, Some(Backend::Fa))));
        assert_eq!(parsed("auto"), Some((None, None)));
        assert_eq!(parsed("fa3"), None);
        assert_eq!(parsed("fa,"), None);
        let said = "fa,trtllm".parse::<Backends>().unwrap_err().to_string();
        assert!(said.contains("\"fa,trtllm\""), "{said}");
    }
}
