//! A rank before its weights come: what it is made for, and the memory that it takes at once.
//!
//! Owns: the choice of element types and kernels by the model's configuration. Must never: run an op.

use super::*;

/// What a GPU rank is made for.
pub struct CudaSpec<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// This rank's share of it.
    pub shard: &'a Shard,
    /// The GPU.
    pub gpu: Gpu,
    /// Its seat among others; `None` alone.
    pub team: Option<Team>,
    /// Requests running at once.
    pub slots: usize,
    /// Of those, requests with penalties.
    pub penalised: usize,
    /// Tokens of a step.
    pub chunk_tokens: usize,
    /// Tokens of a step after which logits can be wanted.
    pub logit_rows: usize,
    /// Tokens a KV page.
    pub page_size: usize,
    /// Which layers share pages.
    pub groups: KvGroups,
    /// Positions of a request.
    pub max_len: usize,
    /// Element type of KV pages.
    pub kv_dtype: KvDtype,
    /// Which attention kernels run.
    pub attn: Attn,
}

/// Element of the pages.
fn kv_type(dtype: KvDtype) -> OpResult<KvType> {
    match dtype {
        KvDtype::Auto | KvDtype::Bf16 => Ok(KvType::Bf16),
        KvDtype::Fp16 => Ok(KvType::Fp16),
        KvDtype::Fp8 => Ok(KvType::Fp8),
        KvDtype::F32 => Err(failed("choose kernels")("there are none for KV pages of f32")),
    }
}

fn backends(attn: Attn) -> Backends {
    let backend = |wanted| match wanted {
        AttnBackend::Auto => None,
        AttnBackend::Fi => Some(Backend::Fi),
        AttnBackend::Fa => Some(Backend::Fa),
    };
    Backends { prefill: backend(attn.prefill), decode: backend(attn.decode) }
}

fn gate(activation: Activation) -> Gate {
    match activation {
        Activation::Silu => Gate::Silu,
        Activation::GeluTanh => Gate::GeluTanh,
        Activation::ClampedSwish => Gate::Clamped,
    }
}

impl CudaOps {
    /// A rank without weights or KV pages.
    ///
    /// # Errors
    /// There are no kernels for this model, or no memory.
    pub fn new(spec: CudaSpec<'_>) -> OpResult<CudaOps> {
        let CudaSpec { config, shard, gpu, team, slots, chunk_tokens, page_size, max_len, .. } =
            spec;
        let requests = (slots, spec.penalised);
        check(config, shard)?;
        let heads = Heads {
            q_heads: shard.heads.len(),
            kv_heads: shard.kv_heads.len(),
            head_dim: config.head_dim,
            page_size,
        };
        let (device, gemm, tuned) = gpu.into_parts();
        let memory = |error: DriverError| failed("allocate workspaces")(error);
        let stream = device.stream().clone();
        let rows = slots.min(chunk_tokens);
        let kv_type = kv_type(spec.kv_dtype)?;
        let shape = AttentionShape { heads, kv: kv_type, config, max_len };
        let limits = AttentionLimits { rows: chunk_tokens, requests: rows };
        let attention = Attention::new(&device, shape, limits, backends(spec.attn))
            .map_err(failed("prepare attention"))?;
        let block = match config.norms.after_blocks {
            true => {
                let (rows, width) = (chunk_tokens, config.hidden_size);
                let data = stream.alloc_zeros(padded_tokens(rows) * width).map_err(memory)?;
                Some(Buffer::new(data, rows, width))
            }
            false => None,
        };
        let room = Room {
            tokens: chunk_tokens,
            rows,
            groups: spec.groups.count(),
            logit_rows: spec.logit_rows,
            work: attention
                .decode_planner()
                .map_or(0, |(planner, windows)| windows.len() * planner.words(rows)),
        };
        let logit_rows = rows.min(LOGIT_ROWS);
        let logit_stride = config.vocab_size.next_multiple_of(ROW_UNIT);
        let drawn_together = team.as_ref().map(Team::seat).filter(|peers| peers.is_direct());
        let (logits, scratch) = match drawn_together {
            Some(peers) => (
                Peers::whole_rows_len(logit_rows, logit_stride),
                peers.sample_scratch_len(logit_rows),
            ),
            None => (
                logit_rows * logit_stride,
                sample_scratch_len(&device, logit_rows, config.vocab_size, logit_stride),
            ),
        };
        let experts = ExpertRoom::new(&device, config, shard, chunk_tokens)?;
        Ok(CudaOps {
            attention,
            experts,
            uploader: RefCell::new(Some(Uploader::new(&stream))),
            weight_bytes: 0.into(),
            shapes: RefCell::default(),
            quantised: None,
            coded_rows: HashMap::new(),
            bias: config.attention_bias,
            plus_one: config.norms.plus_one,
            gate: gate(config.activation),
            block,
            chunk_tokens,
            hidden: config.hidden_size,
            groups: spec.groups.clone(),
            heads,
            kv_type,
            eps: config.rms_norm_eps,
            vocab: config.vocab_size,
            vocab_part: shard.vocab.clone(),
            inputs: Inputs::new(&stream, room).map_err(memory)?,
            tables: Tables::new(
                &stream,
                (slots, spec.groups.count(), max_len.div_ceil(page_size)),
                rows,
            )?,
            requests: Requests::new(&stream, requests, config.vocab_size, max_len)
                .map_err(memory)?,
            masks: Masks::new(&stream, slots, config.vocab_size).map_err(memory)?,
            outputs: Outputs::new(
                &stream,
                (slots, spec.logit_rows),
                team.as_ref().map(Team::words),
            )
            .map_err(memory)?,
            team,
            graphs: Graphs::new(if device.settles() { 0 } else { rows.min(GRAPH_ROWS) }),
            mode: Mode::Eager,
            kv: None,
            kv_pages: 0,
            logits: stream.alloc_zeros(logits).map_err(memory)?,
            logit_rows,
            logit_stride,
            scratch: stream.alloc_zeros(scratch.max(1)).map_err(memory)?,
            gemm,
            tuned,
            device,
        })
    }
}
