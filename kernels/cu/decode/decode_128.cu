#define HEAD_DIM 128

#include "decode.cuh"

DECODE(Bf16, minisgl_decode_bf16_128)
DECODE(Fp16, minisgl_decode_fp16_128)
DECODE(Fp8, minisgl_decode_fp8_128)
