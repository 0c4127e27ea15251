#define HEAD_DIM 256

#include "decode.cuh"

DECODE_WINDOW(Bf16, minisgl_decode_window_bf16_256)
DECODE_WINDOW(Fp16, minisgl_decode_window_fp16_256)
DECODE_WINDOW(Fp8, minisgl_decode_window_fp8_256)
