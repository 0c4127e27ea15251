#include "fi_run.cuh"

FI_RUN(minisgl_fi_run_64_fp16, 64, __half, __half)
