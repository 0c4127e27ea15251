#include "fi_run.cuh"

FI_RUN(minisgl_fi_run_256_fp16, 256, __half, __half)
