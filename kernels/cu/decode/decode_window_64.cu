#define HEAD_DIM 64

#include "decode.cuh"

DECODE_WINDOW(Bf16, minisgl_decode_window_bf16_64)
DECODE_WINDOW(Fp16, minisgl_decode_window_fp16_64)
DECODE_WINDOW(Fp8, minisgl_decode_window_fp8_64)
