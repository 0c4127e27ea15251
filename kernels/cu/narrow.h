/* What the launcher of `kernels/src/ops/narrow.rs` hands to products of some rows of e4m3; see minisgl.h. */
#ifndef MINISGL_NARROW_H
#define MINISGL_NARROW_H

#include "minisgl.h"

/* minisgl_narrow_8, _16, _32, _64: tokens a kernel multiplies */
typedef struct {
  MINISGL_ALIGN(64) uint64_t map[16]; /* CUtensorMap of the weight: bytes [n, k], boxes of 128 x 128, 128-byte swizzle */
  uint64_t x_map[16];          /* of x: bytes [m, k], boxes of the kernel's tokens x 128, 128-byte swizzle */
  const float *x_scales;       /* MINISGL_SCALE_BLOCK: [ceil(k / 128), m]; _ROW: [m] */
  const float *scales;         /* see MINISGL_SCALE_ */
  const minisgl_bf16 *bias;    /* [n]; or null; not if gated */
  void *out;                   /* as in minisgl_skinny_args; e4m3 [m, n / 2] with out_scales */
  float *out_scales;           /* gated with MINISGL_SCALE_BLOCK: [n / 2 / 128, m]; or null */
  uint32_t m;                  /* even */
  uint32_t n;                  /* gated: gate, then up, n / 2 rows each */
  uint32_t k;
  uint32_t epilogue;           /* MINISGL_SKINNY_ */
  uint32_t scale_form;         /* MINISGL_SCALE_ */
  uint32_t stages;             /* of the ring of weights and x */
  uint32_t gate;               /* gated: MINISGL_GATE_ */
} minisgl_narrow_args;

#endif
