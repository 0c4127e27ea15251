#include "fi_run.cuh"

FI_RUN(minisgl_fi_run_64_fp8, 64, __nv_bfloat16, __nv_fp8_e4m3)
