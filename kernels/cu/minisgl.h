/* The fence between Rust and CUDA: what a launcher hands to a kernel.
 *
 * Plain C. Each kernel takes one struct by value; `kernels/src/abi.rs` mirrors the structs, and
 * `kernels/tests/abi.rs` holds the two together by size and offset. Kernel names are in the comment above
 * each struct. Pointers are device addresses; arrays are dense and row-major unless a stride is given;
 * the launchers in `kernels/src/ops` say and check what lengths and alignments they need.
 */
#ifndef MINISGL_H
#define MINISGL_H

#include "attention.h"
#include "types.h"

/* minisgl_embedding, minisgl_embedding_scaled */
typedef struct {
  const int32_t *tokens;       /* [rows]: id, or -(r + 1) for fed[r] */
  const int32_t *fed;          /* [fed_len]: what the step before sampled */
  const minisgl_bf16 *table;   /* [vocab_len, hidden]: ids vocab_start .. vocab_start + vocab_len */
  minisgl_bf16 *out;           /* [rows, hidden] */
  uint32_t rows;
  uint32_t hidden;
  uint32_t fed_len;
  uint32_t vocab_start;
  uint32_t vocab_len;
  float scale;                 /* _scaled: what the table's rows are multiplied by */
} minisgl_embedding_args;

/* minisgl_copy_runs */
typedef struct {
  const int32_t *runs; /* [count, 4]: first word in from, first in to, length, not read */
  const int32_t *from; /* [from_len] */
  int32_t *to;         /* [to_len] */
  uint32_t from_len;
  uint32_t to_len;
} minisgl_copy_runs_args;

/* minisgl_bring */
typedef struct {
  const int32_t *words; /* [words_len]: on the device, or pinned memory of the host; 16-byte vectors */
  int32_t *to;          /* [words_len] */
  const int32_t *pairs; /* [pairs_len, 2]: an entry of table, and what it becomes; as words */
  int32_t *table;       /* [table_len] */
  uint32_t words_len;
  uint32_t pairs_len;
  uint32_t table_len;
  uint32_t reserved;
} minisgl_bring_args;

/* minisgl_rmsnorm_1, _2: 16-byte vectors of a row held by one thread; with _plus_one behind, weights are stored less 1 */
typedef struct {
  const minisgl_bf16 *x;       /* [x_rows, hidden] */
  const int32_t *index;        /* [rows]: row of x, negative for a padding row; or null for all rows of x */
  const minisgl_bf16 *weight;  /* [hidden] */
  minisgl_bf16 *out;           /* [rows, hidden] */
  uint32_t rows;
  uint32_t x_rows;
  uint32_t hidden;
  float eps;
} minisgl_rmsnorm_args;

/* minisgl_add_norm_1, _2: 16-byte vectors of a row held by one thread */
typedef struct {
  const minisgl_bf16 *x;       /* [rows, hidden]: what a block gives */
  const minisgl_bf16 *after;   /* [hidden]: weights of its norm */
  minisgl_bf16 *residual;      /* [rows, hidden]: the norm is added to it */
  const minisgl_bf16 *next;    /* [hidden]: weights of the norm of the sum; or null for none */
  minisgl_bf16 *normed;        /* [rows, hidden]: the norm of the sum */
  uint32_t rows;
  uint32_t hidden;
  float eps;
  uint32_t plus_one;           /* 1: all weights are stored less 1 */
} minisgl_add_norm_args;

/* minisgl_qk_rope_page_64, _96, _128, _256: head_dim; pages of bf16, or with _fp16, _fp8 behind; then, where weights of
 * norms are stored less 1, _plus_one */
typedef struct {
  const minisgl_bf16 *qkv;      /* [rows, q_heads + 2 * kv_heads, head_dim] */
  const minisgl_bf16 *q_weight; /* [head_dim]; or null for no norm */
  const minisgl_bf16 *k_weight; /* [head_dim]; null together with q_weight */
  const float *cos_sin;         /* [positions_len, head_dim]: half the row cosines, half sines */
  const int32_t *positions;     /* [rows] */
  const int32_t *slots;         /* [rows]: page * page_size + offset; negative for a padding row */
  void *q_out;                  /* bf16 or fp16 [rows, q_heads, head_dim] */
  void *k_pages;                /* [slots_len, kv_heads, head_dim] */
  void *v_pages;                /* [slots_len, kv_heads, head_dim] */
  uint32_t rows;
  uint32_t q_heads;
  uint32_t kv_heads;
  uint32_t positions_len;
  uint32_t slots_len;
  float eps;
  uint32_t q_fp16;              /* 1: q_out is fp16 */
  uint32_t reserved;
} minisgl_qk_rope_page_args;

/* minisgl_widen_heads */
typedef struct {
  const minisgl_bf16 *x;       /* any elements of 2 bytes, [heads, from] */
  minisgl_bf16 *out;           /* [heads, to]: the first of each head, then zeros if there is more room */
  uint32_t heads;              /* of all rows */
  uint32_t from;
  uint32_t to;
  uint32_t reserved;
} minisgl_widen_heads_args;

/* minisgl_silu_mul, minisgl_gate_mul */
typedef struct {
  const minisgl_bf16 *gate_up; /* [rows, 2, width]: gate, then up */
  minisgl_bf16 *out;           /* [rows, width] */
  uint32_t rows;
  uint32_t width;
  uint32_t gate;               /* MINISGL_GATE_; of silu_mul MINISGL_GATE_SILU */
  uint32_t reserved;
} minisgl_gate_mul_args;

/* What a weight of e4m3 is multiplied by. */
#define MINISGL_SCALE_BLOCK 0  /* f32 [ceil(n / 128), ceil(k / 128) up to a MINISGL_SCALE_UNIT]: one for 128 x 128 */
#define MINISGL_SCALE_ROW 1    /* f32 [n]: one for a row */
#define MINISGL_SCALE_UNIT 4   /* what cuBLASLt wants rows of scales to be whole units of */

/* minisgl_skinny_stream_G_T, _held_T_S, each also with _e4m3 behind: G groups of 8 rows of x, T tiles of 16
 * rows of the weight a block, S steps of 32 columns a warp, of 64 for e4m3; minisgl_gemv_S: m is 1, the weight e4m3, S steps
 * of 512 columns a warp, a norm for S up to 2, gated but for S 5 */
#define MINISGL_SKINNY_BF16 0
#define MINISGL_SKINNY_F32 1
#define MINISGL_SKINNY_ADD 2
#define MINISGL_SKINNY_GATED 3
#define MINISGL_PEERS_MAX 7
typedef struct {
  const minisgl_bf16 *x;       /* [m, k]; to be normalised if there is a norm_weight */
  const minisgl_bf16 *norm_weight; /* [k]; or null */
  const void *weight;          /* [n, k], bf16 or e4m3; gated: gate, then up, [2, n / 2, k] */
  const float *scales;         /* e4m3: see MINISGL_SCALE_; else null */
  const minisgl_bf16 *bias;    /* [n]; or null; only with MINISGL_SKINNY_BF16 and _ADD */
  void *out;                   /* [m, n]: bf16, f32, or bf16 read and written; gated: bf16 [m, n / 2] */
  uint32_t m;
  uint32_t n;
  uint32_t k;
  float eps;
  uint32_t epilogue;           /* MINISGL_SKINNY_ */
  uint32_t chunk;              /* stream: columns of a stage, a multiple of 32 (e4m3: 128) unless it is k */
  uint32_t stages;             /* stream, gemv: of the ring of weights */
  uint32_t resident;           /* stream: 1: x is kept whole, as always for e4m3; 0: it comes with the weights */
  minisgl_bf16 *inbox[MINISGL_PEERS_MAX]; /* MINISGL_SKINNY_BF16: where `peers` other GPUs take `out` too, [m, n] */
  uint32_t peers;
  uint32_t scale_form;         /* MINISGL_SCALE_ */
  uint32_t gate;               /* MINISGL_SKINNY_GATED: MINISGL_GATE_ */
  uint32_t reserved;
} minisgl_skinny_args;

/* minisgl_medium_8, _16, _32, _64: tokens a kernel multiplies */
typedef struct {
  MINISGL_ALIGN(64) uint64_t map[16]; /* CUtensorMap of the weight: bytes [n, k], boxes of 128 x 128, 128-byte swizzle */
  const minisgl_bf16 *x;       /* [m, k] */
  const float *scales;         /* see MINISGL_SCALE_ */
  const minisgl_bf16 *bias;    /* [n]; or null; only with MINISGL_SKINNY_BF16 and _ADD */
  void *out;                   /* as in minisgl_skinny_args */
  uint32_t m;
  uint32_t n;                  /* gated: gate, then up, n / 2 rows each */
  uint32_t k;
  uint32_t epilogue;           /* MINISGL_SKINNY_ */
  uint32_t scale_form;         /* MINISGL_SCALE_ */
  uint32_t stages;             /* of the ring of weights and x */
  uint32_t gate;               /* MINISGL_SKINNY_GATED: MINISGL_GATE_ */
} minisgl_medium_args;

/* minisgl_quantise_1, _2, _4: 16-byte vectors of a row held by one thread; minisgl_quantise_blocks: MINISGL_SCALE_BLOCK
 * without a norm, hidden a multiple of 128 */
typedef struct {
  const minisgl_bf16 *x;       /* [rows, hidden]; gated: gate, then up, [rows, 2, hidden] */
  const minisgl_bf16 *norm_weight; /* [hidden]; or null for no norm; null if gated */
  uint8_t *out;                /* e4m3 [rows, hidden] */
  float *scales;               /* MINISGL_SCALE_BLOCK: [ceil(hidden / 128), scale_stride]; _ROW: [rows] */
  uint32_t rows;
  uint32_t hidden;
  uint32_t scale_stride;       /* at least rows */
  uint32_t scale_form;         /* MINISGL_SCALE_ */
  uint32_t gated;              /* 1: of a gate and of up */
  float eps;
  uint32_t gate;               /* gated: MINISGL_GATE_ */
  uint32_t plus_one;           /* 1: norm_weight is stored less 1 */
} minisgl_quantise_args;

/* minisgl_dummy */
typedef struct {
  minisgl_bf16 *out;           /* [rows, cols] */
  uint64_t key;                /* of the tensor */
  uint64_t first;              /* index of out[0, 0] in the full tensor */
  uint32_t rows;
  uint32_t cols;
  uint32_t width;              /* columns of the full tensor */
  float scale;
  float mean;
  uint32_t reserved;
} minisgl_dummy_args;

/* How a request's tokens are sampled. */
typedef struct {
  uint64_t seed;
  float temperature;           /* not above 0, or NaN: greedy */
  uint32_t top_k;              /* 0: off */
  float top_p;                 /* 1: off */
  float min_p;                 /* 0: off */
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t history;             /* which table of `marks`; negative for no penalties */
  uint32_t bias_at;            /* first of its entries in bias_tokens and bias_values */
  uint32_t bias_len;
  uint32_t banned_at;          /* first of its entries in banned */
  uint32_t banned_len;
  uint32_t banned_below;       /* position of the first token that may be one of them */
  uint32_t reserved;
} minisgl_sample_params;

/* One row of logits, and what becomes of it. */
typedef struct {
  uint32_t slot;               /* whose `params` */
  uint32_t position;           /* of the token that is sampled */
  int32_t out;                 /* where in `tokens`; negative for a padding row */
  int32_t logprobs;            /* how many of the most likely tokens; negative for no logprobs */
  int32_t given;               /* a token of which the log-probability alone is wanted; negative: draw one */
  int32_t mask;                /* which of `masks`; negative for none */
} minisgl_sample_row;

/* minisgl_sample_shared, minisgl_sample_scratch: where the working copy of the logits is */
typedef struct {
  const float *logits;             /* [rows, stride], the first `vocab` of each row used */
  const minisgl_sample_row *draws; /* [rows] */
  const minisgl_sample_params *params; /* [slots] */
  const uint32_t *masks;           /* [masks_len, ceil(vocab / 32)]: a bit for each token, set if it may be drawn */
  const uint32_t *bias_tokens;     /* [bias_len]; each token once in a row's entries */
  const float *bias_values;        /* [bias_len] */
  const uint32_t *banned;          /* [banned_len] */
  uint32_t *marks;                 /* [tables, vocab]: 2 * times in output + (in prompt) */
  float *scratch;                  /* [rows, stride], or null for _shared */
  int32_t *tokens;                 /* [tokens_len]; -1 for a row that has nothing to sample from */
  float *logprob;                  /* [rows]: of the sampled token, where asked for */
  int32_t *top_tokens;             /* [rows, top_max]: most likely first */
  float *top_logprobs;             /* [rows, top_max] */
  uint32_t rows;
  uint32_t slots;
  uint32_t vocab;
  uint32_t stride;
  uint32_t tables;
  uint32_t masks_len;
  uint32_t tokens_len;
  uint32_t bias_len;
  uint32_t banned_len;
  uint32_t top_max;
  uint32_t part;                   /* logits of a row that one block holds, an odd multiple of its threads */
  uint32_t stagger;                /* clocks between the first copies of neighbouring clusters */
} minisgl_sample_args;

/* minisgl_history_reset */
typedef struct {
  const uint32_t *tokens;      /* [len]: prompt, then output */
  uint32_t *marks;             /* [vocab]: one table, zeros before */
  uint32_t len;
  uint32_t prompt_len;
  uint32_t vocab;
  uint32_t reserved;
} minisgl_history_reset_args;

/* minisgl_decode_bf16_64 .. minisgl_decode_fp8_256: element of the pages, head_dim; also minisgl_decode_window_bf16_64 .. .
 * A grid of whole teams of kv_heads blocks. */
typedef struct {
  const void *q;                /* [rows, q_heads, head_dim], fp16 for fp16 pages, else bf16; fused: bf16
                                   [rows, q_heads + 2 * kv_heads, head_dim] */
  const minisgl_bf16 *q_weight; /* fused: [head_dim]; or null for no norm */
  const minisgl_bf16 *k_weight; /* [head_dim]; null together with q_weight */
  const float *cos_sin;         /* fused: [positions_len, head_dim]: half the row cosines, half sines */
  void *k_pages;                /* [pages, page_size, kv_heads, head_dim] */
  void *v_pages;                /* as k_pages */
  minisgl_bf16 *out;            /* [rows, q_heads, head_dim] */
  const int32_t *work;          /* [blocks / kv_heads, 8], then [rows, 4]: see attention/decode_plan.rs */
  const int32_t *pages;         /* page ids of all requests, in the order of positions */
  float *partials;              /* [2 * blocks, group, head_dim], then the same [.., 2]: maximum and sum */
  uint32_t *arrived;            /* [blocks], all 0 between launches */
  uint32_t q_heads;
  uint32_t kv_heads;
  uint32_t page_size;
  uint32_t positions_len;
  uint32_t stages;              /* tiles in shared memory, 2 to 4 */
  uint32_t fused;               /* 1: q is the projection; the new token's K and V are made and stored here */
  float eps;
  float scale;                  /* of the scores before softmax */
  const minisgl_bf16 *sinks;    /* _window: [q_heads]: one more logit, a natural logarithm, of each head; or null */
  uint32_t window;              /* _window: tokens that are seen, the newest the last; as planned */
  uint32_t plus_one;            /* _window: 1: q_weight and k_weight are stored less 1 */
  uint8_t *codes;               /* head_dim 128: instead of out, e4m3 [rows, q_heads, head_dim]; or null */
  float *scales;                /* with codes: [q_heads, scale_stride] */
  uint32_t scale_stride;        /* at least rows */
  uint32_t reserved;
} minisgl_decode_args;

#endif
