#define HEAD_DIM 96

#include "decode.cuh"

DECODE(Bf16, minisgl_decode_bf16_96)
DECODE(Fp16, minisgl_decode_fp16_96)
DECODE(Fp8, minisgl_decode_fp8_96)
