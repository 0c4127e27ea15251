#define HEAD_DIM 128

#include "decode.cuh"

DECODE_WINDOW(Bf16, minisgl_decode_window_bf16_128)
DECODE_WINDOW(Fp16, minisgl_decode_window_fp16_128)
DECODE_WINDOW(Fp8, minisgl_decode_window_fp8_128)
