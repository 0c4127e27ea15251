#include "fi_run.cuh"

FI_RUN(minisgl_fi_run_128_fp16, 128, __half, __half)
