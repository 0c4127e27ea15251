#include "fi_run.cuh"

FI_RUN(minisgl_fi_run_256, 256, __nv_bfloat16, __nv_bfloat16)
