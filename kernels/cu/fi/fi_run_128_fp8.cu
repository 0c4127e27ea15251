#include "fi_run.cuh"

FI_RUN(minisgl_fi_run_128_fp8, 128, __nv_bfloat16, __nv_fp8_e4m3)
