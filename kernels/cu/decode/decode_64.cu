#define HEAD_DIM 64

#include "decode.cuh"

DECODE(Bf16, minisgl_decode_bf16_64)
DECODE(Fp16, minisgl_decode_fp16_64)
DECODE(Fp8, minisgl_decode_fp8_64)
