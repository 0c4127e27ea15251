#define HEAD_DIM 256

#include "decode.cuh"

DECODE(Bf16, minisgl_decode_bf16_256)
DECODE(Fp16, minisgl_decode_fp16_256)
DECODE(Fp8, minisgl_decode_fp8_256)
