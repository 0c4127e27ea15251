/* The fence of what GPUs do together: all ranks are threads of one process, so that addresses of one GPU's memory
 * mean the same on all of them. */
#ifndef MINISGL_PEERS_H
#define MINISGL_PEERS_H

#include "minisgl.h"

#define MINISGL_RANKS_MAX 8

/* Of the sampler: clusters at once, blocks of one, tokens of a list. */
#define MINISGL_MAIL_CLUSTERS 64
#define MINISGL_MAIL_BLOCKS 16
#define MINISGL_MAIL_LIST 512

/* What a meeting that failed leaves in the host's memory. */
typedef struct {
  uint32_t failed;             /* 1: the rest is written */
  uint32_t missing;            /* the rank that did not come */
  uint32_t block;
  uint32_t turn;
} minisgl_peer_fault;

/* How ranks meet: each block of a launch with the same block of every other rank's launch. */
typedef struct {
  uint32_t *arrivals[MINISGL_RANKS_MAX]; /* each rank's own memory, [blocks, RANKS_MAX]: the turn that rank has come to */
  uint32_t *turns;             /* [blocks]: meetings of this rank's blocks so far */
  minisgl_peer_fault *fault;
  uint64_t patience_ns;        /* how long a block waits before it gives up, and the GPU with it */
  uint32_t rank;
  uint32_t ranks;              /* 1: nobody is met */
} minisgl_peers;

/* minisgl_all_reduce_1, _2, minisgl_all_reduce_twice_1, _2: 16-byte vectors of a row held by one thread */
typedef struct {
  minisgl_peers peers;
  minisgl_bf16 *delta[MINISGL_RANKS_MAX]; /* of each rank, [rows, hidden]; the first `ranks` */
  minisgl_bf16 *residual;      /* [rows, hidden] */
  const minisgl_bf16 *norm_weight; /* [hidden]; or null for no norm */
  minisgl_bf16 *normed;        /* [rows, hidden]; or null */
  uint32_t rows;
  uint32_t hidden;
  float eps;
  uint32_t add;                /* 1: the sum is added to the residual; 0: it replaces it */
} minisgl_all_reduce_args;

/* minisgl_push_1, _2 */
typedef struct {
  minisgl_all_reduce_args sum;
  minisgl_bf16 *inbox[MINISGL_RANKS_MAX]; /* of each rank, [ranks, inbox_rows, hidden]: what each rank sent it */
  uint32_t inbox_rows;
  uint32_t sent;               /* 1: the product before this wrote its results into the inboxes, too */
} minisgl_push_args;

/* minisgl_meet */
typedef struct {
  minisgl_peers peers;
} minisgl_meet_args;

/* minisgl_gather_columns */
typedef struct {
  const float *part[MINISGL_RANKS_MAX]; /* of each of `parts`, [rows, part_stride of it]: its columns */
  uint32_t start[MINISGL_RANKS_MAX + 1]; /* first column of each part, and the end of the last */
  uint32_t parts;
  uint32_t part_stride[MINISGL_RANKS_MAX];
  float *out;                  /* [rows, stride] */
  uint32_t rows;
  uint32_t stride;
  uint32_t vectors;            /* 1: starts and strides are multiples of 4 */
  uint32_t reserved;
} minisgl_gather_columns_args;

/* A message of 8 bytes; each half of the line arrives whole, with its turn. */
typedef struct {
  uint32_t low;
  uint32_t low_turn;
  uint32_t high;
  uint32_t high_turn;
} minisgl_mail_line;

/* What the peers' clusters of the same index send one cluster of the sampler, by the sender's rank. */
typedef struct {
  minisgl_mail_line number[MINISGL_MAIL_BLOCKS][2][MINISGL_RANKS_MAX]; /* to each block, even turns and odd */
  minisgl_mail_line token[MINISGL_RANKS_MAX];
  minisgl_mail_line list[MINISGL_RANKS_MAX][MINISGL_MAIL_LIST];
} minisgl_mail;

/* minisgl_sample_ranks_shared, minisgl_sample_ranks_scratch */
typedef struct {
  minisgl_sample_args sample;  /* logits, scratch: [rows, stride], this rank's columns; the rest is of whole rows */
  minisgl_peers peers;
  const float *part[MINISGL_RANKS_MAX]; /* of each rank, [rows, part_stride of it]: its logits */
  minisgl_mail *mail[MINISGL_RANKS_MAX]; /* each rank's own memory, [MAIL_CLUSTERS]; */
  uint32_t *turns;             /* [MAIL_CLUSTERS]: this rank's so far */
  float *whole;                /* [MAIL_CLUSTERS, whole_stride]: for a row of which all logits are needed */
  uint32_t start[MINISGL_RANKS_MAX + 1]; /* first token of each rank, and the end of the vocabulary */
  uint32_t part_stride[MINISGL_RANKS_MAX];
  uint32_t whole_stride;
} minisgl_sample_ranks_args;

#endif
