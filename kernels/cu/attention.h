/* The part of the fence whose launches are host code: the attention backends `fi` and `fa`. A header of its own,
 * since what includes it takes minutes to compile. See minisgl.h.
 */
#ifndef MINISGL_ATTENTION_H
#define MINISGL_ATTENTION_H

#include "types.h"

/* Attention of the backend `fi`, launched by host code; the functions are below, D is in their names. It serves
 * a range of a step's requests: q_starts counts in the rows of the step, and out has those of the range. */
typedef struct {
  const void *q;               /* [rows, q_heads, D]: bf16, with pages of fp16 fp16 */
  const void *k_pages;         /* [pages, page_size, kv_heads, kv_stride]: the first D of each head are read */
  const void *v_pages;         /* as k_pages */
  minisgl_bf16 *out;           /* [rows of the range, q_heads, D] */
  const int32_t *q_starts;     /* [requests + 1]: first row of each request */
  const int32_t *page_starts;  /* [requests + 1]: first page of each request in `pages` */
  const int32_t *pages;        /* page ids of all requests */
  const int32_t *last_page_len; /* [requests]: tokens in the last page, 1 ..= page_size */
  void *float_workspace;
  void *int_workspace;
  uint32_t requests;
  uint32_t q_heads;
  uint32_t kv_heads;
  uint32_t kv_stride;          /* elements between heads; may be less than D where D is padded */
  uint32_t page_size;
  float scale;
  uint32_t dependent;          /* 1: programmatic dependent launch */
  int32_t window_left;         /* _window: tokens before a row's own that it sees, as planned; negative for all */
  const minisgl_bf16 *sinks;   /* _window: [q_heads]; or null */
} minisgl_fi_args;

/* How the work of a batch is cut up: host arrays in, a plan and the content of int_workspace out. */
typedef struct {
  const int32_t *q_starts;     /* on the host, [requests + 1] */
  const int32_t *page_starts;  /* on the host, [requests + 1] */
  void *float_workspace;
  void *int_workspace;
  void *pinned;                /* on the host, as large as int_workspace */
  uint64_t float_bytes;
  uint64_t int_bytes;
  uint32_t rows;
  uint32_t requests;
  uint32_t q_heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t page_size;
  uint32_t kv_bytes;           /* of an element of the pages */
  uint32_t graph;              /* 1: a plan whose launch can be replayed with other lengths */
  int32_t window_left;         /* tokens before a row's own that it sees; negative for all */
  uint32_t reserved;
} minisgl_fi_plan_args;

/* Attention of the backend `fa`, launched by host code: the functions below, for sm_90a alone. */
typedef struct {
  const void *q;               /* bf16 [rows, q_heads, D] */
  const void *k_pages;         /* bf16 [pages, page_size, kv_heads, kv_stride]: the first D of each head are read */
  const void *v_pages;         /* as k_pages */
  void *out;                   /* bf16 [rows, q_heads, D] */
  const int32_t *pages;        /* page ids of all requests */
  const int32_t *work_starts;  /* [multiprocessors + 1]: first piece of work of each block */
  const int32_t *work;         /* [6, work_len]: tile of the request's rows, query head, first row of the
                                  request, its rows, its first page in `pages`, its tokens */
  uint32_t work_len;
  uint32_t rows;
  uint32_t q_heads;
  uint32_t kv_heads;
  uint32_t kv_stride;          /* elements between heads; may be less than D where D is padded */
  uint32_t page_size;
  float scale;
  uint32_t tile;               /* rows of a tile, as the kernel has them */
  const minisgl_bf16 *sinks;   /* _window: [q_heads]; or null */
  int32_t window_left;         /* _window: tokens before a row's own that it sees, at most 2^30 */
  uint32_t reserved;
} minisgl_fa_args;

/* Words of a plan. */
#define MINISGL_FI_PLAN_WORDS 15

#ifdef __cplusplus
extern "C" {
#endif
/* 0, or CUDA's error code, or -1 for an exception. */
int minisgl_fi_plan(const minisgl_fi_plan_args *args, int64_t *plan, void *stream);
int minisgl_fi_run_64(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_128(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_256(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_64_fp16(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_128_fp16(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_256_fp16(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_64_fp8(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_128_fp8(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_run_256_fp8(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_64(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_128(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_256(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_64_fp16(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_128_fp16(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_256_fp16(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_64_fp8(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_128_fp8(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fi_window_256_fp8(const minisgl_fi_args *args, const int64_t *plan, void *stream);
int minisgl_fa_run_64(const minisgl_fa_args *args, void *stream);
int minisgl_fa_run_128(const minisgl_fa_args *args, void *stream);
int minisgl_fa_run_256(const minisgl_fa_args *args, void *stream);
int minisgl_fa_window_64(const minisgl_fa_args *args, void *stream);
int minisgl_fa_window_128(const minisgl_fa_args *args, void *stream);
int minisgl_fa_window_256(const minisgl_fa_args *args, void *stream);
#ifdef __cplusplus
}
#endif

#endif
