/* What the launcher of `kernels/src/ops/broad.rs` hands to products of many rows of e4m3; see minisgl.h. */
#ifndef MINISGL_BROAD_H
#define MINISGL_BROAD_H

#include "minisgl.h"

/* minisgl_broad_WIDE_TEAMS: rows of the weight of a tile, and tokens in 64s */
typedef struct {
  MINISGL_ALIGN(64) uint64_t map[16]; /* CUtensorMap of the weight: bytes [n, k], boxes of WIDE / 4 x 128, 128-byte swizzle */
  uint64_t x_map[16];          /* of x: bytes [m, k], boxes of 64 or 128 tokens x 128, 128-byte swizzle */
  const float *x_scales;       /* MINISGL_SCALE_BLOCK: [ceil(k / 128), m]; _ROW: [m] */
  const float *scales;         /* see MINISGL_SCALE_ */
  const minisgl_bf16 *bias;    /* [n]; or null; not if gated */
  void *out;                   /* as in minisgl_skinny_args */
  uint32_t m;                  /* a multiple of 4 */
  uint32_t n;                  /* gated: gate, then up, n / 2 rows each */
  uint32_t k;
  uint32_t epilogue;           /* MINISGL_SKINNY_ */
  uint32_t scale_form;         /* MINISGL_SCALE_ */
  uint32_t stages;             /* of the ring of weights and x */
  uint32_t gate;               /* gated: MINISGL_GATE_ */
} minisgl_broad_args;

#endif
