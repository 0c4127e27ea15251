/* What the launchers of `kernels/src/ops/experts` hand to a mixture of experts; see minisgl.h.
 *
 * Weights of experts are kept in slabs of 16 rows, so that a slab is read from end to end, and is what the tensor
 * cores read from shared memory: [experts][n / 16 slabs][ceil(columns / 64) steps][16 rows][64 columns]. Columns past
 * the last are zeros. The eight 16-byte units of a row are permuted: unit u of row r lies at u ^ (r % 8). Gate and up
 * share a slab: 8 rows of the gate, then the same 8 of `up`. Weights of e4m3 lie as bf16 of half the columns would.
 *
 * A plan says which pairs of a row and one of its experts are computed together, `batch` at most:
 *   [4]                 batches there are, pairs there are, 0, 0
 *   [batches_max][4]    a batch: expert, first of its places, how many, 0
 *   [rows * top]        what is at a place, pairs of one expert side by side in the order of rows: row * top + choice
 *   [rows * top]        the place of a pair; negative for a padding row's
 */
#ifndef MINISGL_EXPERTS_H
#define MINISGL_EXPERTS_H

#include "types.h"

#define MINISGL_EXPERTS_MAX 512
#define MINISGL_TOP_MAX 16
/* Rows whose choices one block makes, and sorts by masks of 64 bits. */
#define MINISGL_ROUTE_ROWS 64

/* minisgl_pack */
#define MINISGL_PACK_ROWS 0
#define MINISGL_PACK_GATE 1
#define MINISGL_PACK_UP 2
#define MINISGL_PACK_ALTERNATE 3
typedef struct {
  const minisgl_bf16 *from;    /* element [row, column] at row * row_stride + column * column_stride */
  minisgl_bf16 *to;            /* slabs of one expert */
  uint64_t row_stride;
  uint64_t column_stride;
  uint32_t rows;               /* of `from` */
  uint32_t columns;
  uint32_t rows_are;           /* MINISGL_PACK_ */
  uint32_t reserved;
} minisgl_pack_args;

/* minisgl_router: with the plan; minisgl_choose, minisgl_place: from logits, without x */
#define MINISGL_SCORE_SOFTMAX 0
#define MINISGL_SCORE_SIGMOID 1
typedef struct {
  const minisgl_bf16 *x;           /* [rows, hidden]; to be normalised if there is a norm_weight */
  const minisgl_bf16 *norm_weight; /* [hidden]; or null */
  const minisgl_bf16 *weight;      /* [experts, hidden] */
  const minisgl_bf16 *bias;        /* [experts], added to the logits; or null. Logits that are given are without it */
  const float *correction;         /* [experts], added to a sigmoid for the choice alone; or null */
  const int32_t *there;            /* [rows]: negative for a padding row; or null */
  minisgl_bf16 *normed;            /* [rows, hidden]: x as it was multiplied; or null */
  float *logits;                   /* [rows, logits_stride]: written by minisgl_router, read by minisgl_choose */
  int32_t *ids;                    /* [rows, top]; -1 for a padding row */
  float *weights;                  /* [rows, top]; 0 for a padding row */
  int32_t *counts;                 /* [ceil(rows / choose_rows), experts]: minisgl_choose and _place */
  int32_t *plan;
  uint32_t *arrived;               /* [2]: 0 between launches */
  uint32_t rows;
  uint32_t hidden;
  uint32_t experts;
  uint32_t top;
  float eps;
  float scale;                     /* of the weights */
  uint32_t score;                  /* MINISGL_SCORE_ */
  uint32_t renormalise;            /* 1: weights of a row sum to scale */
  uint32_t batch;
  uint32_t batches_max;
  uint32_t logits_stride;          /* experts at least */
  uint32_t choose_rows;            /* of a block of minisgl_choose; divides MINISGL_ROUTE_ROWS */
} minisgl_router_args;

/* minisgl_experts_few, and minisgl_fp8_few with weights of e4m3: batches of 8 pairs */
typedef struct {
  const minisgl_bf16 *x;       /* [rows, hidden] */
  const void *gate_up;         /* [experts], slabs of 2 * width rows */
  const void *down;            /* [experts], slabs of hidden rows */
  const minisgl_bf16 *up_bias; /* [experts, 2, width]: gate, then up; or null */
  const minisgl_bf16 *down_bias; /* [experts, hidden]; or null */
  const float *weights;        /* [rows, top] */
  const int32_t *ids;          /* [rows, top] */
  const int32_t *plan;
  minisgl_bf16 *act;           /* [rows * top, width]: by places */
  minisgl_bf16 *out;           /* [rows, hidden] */
  uint32_t *arrived;           /* [2]: 0 between launches */
  const float *up_scales;      /* of minisgl_fp8_few: see experts/fp8.cuh */
  const float *down_scales;
  uint32_t rows;
  uint32_t top;
  uint32_t hidden;
  uint32_t width;
  uint32_t batches_max;
  uint32_t gate;               /* MINISGL_GATE_ */
  uint32_t up_steps;           /* steps of 64 columns, or 128 of e4m3, in a stage */
  uint32_t down_steps;
  uint32_t stages;             /* of the ring */
  uint32_t stage_bytes;
  uint32_t adds;               /* 1: to what is in `out` */
  uint32_t up_form;            /* MINISGL_SCALE_: of up_scales */
  uint32_t down_form;
  uint32_t reserved;
} minisgl_experts_few_args;

/* minisgl_experts_many_up, _down */
typedef struct {
  const minisgl_bf16 *x;       /* [ceil(columns / 64), rows * top, 64], by places: minisgl_gather's, or that of `up` */
  const void *weight;          /* [experts], slabs of n rows */
  const minisgl_bf16 *bias;    /* up: [experts, 2, n / 2], gate, then up; down: [experts, n]; or null */
  const int32_t *plan;
  minisgl_bf16 *out;           /* by places: up [ceil(n / 128), rows * top, 64], down [rows * top, n] */
  uint32_t rows;
  uint32_t top;
  uint32_t n;
  uint32_t columns;
  uint32_t batches_max;
  uint32_t batch;              /* pairs of a batch at most: 32, 64, 128 or 256 */
  uint32_t stages;             /* of the ring */
  uint32_t gate;               /* MINISGL_GATE_ */
} minisgl_experts_many_args;

/* minisgl_gather */
typedef struct {
  const minisgl_bf16 *x;       /* [rows, columns] */
  const int32_t *plan;
  minisgl_bf16 *to;            /* [ceil(columns / 64), rows * top, 64], by places */
  uint32_t rows;
  uint32_t top;
  uint32_t columns;
  uint32_t batches_max;
} minisgl_gather_args;

/* minisgl_combine */
typedef struct {
  const minisgl_bf16 *y;       /* [rows * top, hidden], by places */
  const float *weights;        /* [rows, top] */
  const int32_t *place;        /* [rows * top]: of the plan */
  minisgl_bf16 *out;           /* [rows, hidden] */
  uint32_t rows;
  uint32_t top;
  uint32_t hidden;
  uint32_t adds;               /* 1: to what is in `out` */
} minisgl_combine_args;

/* minisgl_add_shared */
typedef struct {
  const minisgl_bf16 *x;       /* [rows, hidden] */
  const minisgl_bf16 *gate;    /* [hidden]; or null: the factor is 1 */
  const minisgl_bf16 *y;       /* [rows, hidden] */
  minisgl_bf16 *out;           /* [rows, hidden], added to */
  uint32_t rows;
  uint32_t hidden;
} minisgl_add_shared_args;

/* minisgl_mxfp4_pack: one matrix of one expert into the slabs of experts/mxfp4.cuh */
typedef struct {
  const uint8_t *codes;        /* code [row, column] in byte row * row_bytes + column / 2; even columns in the low bits */
  const uint8_t *scales;       /* [row, block] at row * scales_stride + block; blocks begin `left` columns before */
  uint8_t *to;
  uint64_t row_bytes;
  uint64_t scales_stride;
  uint32_t rows;               /* of codes */
  uint32_t columns;
  uint32_t above;              /* rows of zeros before the first */
  uint32_t left;               /* columns of zeros before the first: less than 32 */
  uint32_t to_rows;            /* rows with those of zeros, before and after */
  uint32_t to_columns;         /* columns with those of zeros, before and after */
  uint32_t rows_are;           /* MINISGL_PACK_ */
  uint32_t in_parts;           /* 1: `down` */
} minisgl_mxfp4_pack_args;

/* minisgl_mxfp4_few: batches of 8 pairs */
typedef struct {
  const minisgl_bf16 *x;       /* [rows, hidden] */
  const void *gate_up;         /* [experts], slabs of 2 * width rows */
  const void *down;            /* [experts], slabs of hidden rows, in parts */
  const minisgl_bf16 *up_bias; /* [experts, 2, width]: gate, then up; or null */
  const minisgl_bf16 *down_bias; /* [experts, hidden]; or null */
  const float *weights;        /* [rows, top] */
  const int32_t *ids;          /* [rows, top] */
  const int32_t *plan;
  minisgl_bf16 *act;           /* [rows * top, width]: by places, times 2^60 */
  minisgl_bf16 *out;           /* [rows, hidden] */
  uint32_t *counts;            /* [4 + hidden / 16, rounded up to 4]: 0 between launches; then f32 [parts, rows, hidden] */
  uint32_t rows;
  uint32_t top;
  uint32_t hidden;
  uint32_t width;
  uint32_t batches_max;
  uint32_t gate;               /* MINISGL_GATE_ */
  uint32_t stages;             /* of the ring */
  uint32_t stage_bytes;
  uint32_t room_bytes;         /* for rows of x, then for sums */
  uint32_t x_buffers;          /* 1 or 2 batches' rows of x at once */
  uint32_t adds;               /* 1: to what is in `out` */
  uint32_t reserved;
} minisgl_mxfp4_few_args;

/* minisgl_fp8_gather: rows brought together, and made e4m3 */
typedef struct {
  const minisgl_bf16 *x;       /* [rows, columns]; or [rows * top, columns], by places */
  const int32_t *plan;
  uint8_t *to;                 /* [ceil(columns / 128), rows * top, 128], by places */
  float *scales;               /* [2][ceil(columns / 128)][scale_stride]: by places, and by places and 1 */
  uint32_t rows;
  uint32_t top;
  uint32_t columns;
  uint32_t batches_max;
  uint32_t scale_stride;       /* rows * top + 1 at least, a multiple of 4 */
  uint32_t by_places;          /* 1: so is x */
} minisgl_fp8_gather_args;

/* minisgl_fp8_many_up_block, _up_row, _down_block, _down_row */
typedef struct {
  const uint8_t *x;            /* what minisgl_fp8_gather has left */
  const float *x_scales;
  const void *weight;          /* [experts], slabs of n rows */
  const float *scales;         /* see experts/fp8.cuh */
  const minisgl_bf16 *bias;    /* up: [experts, 2, n / 2], gate, then up; down: [experts, n]; or null */
  const int32_t *plan;
  minisgl_bf16 *out;           /* by places: up [rows * top, n / 2], down [rows * top, n] */
  uint32_t rows;
  uint32_t top;
  uint32_t n;
  uint32_t columns;
  uint32_t batches_max;
  uint32_t batch;              /* pairs of a batch at most: 32, 64 or 128 */
  uint32_t stages;             /* of the ring */
  uint32_t gate;               /* MINISGL_GATE_ */
  uint32_t scale_stride;
  uint32_t reserved;
} minisgl_fp8_many_args;

/* minisgl_mxfp4_many_up_B, _down_B for batches of B pairs: minisgl_experts_many_args */

#endif
