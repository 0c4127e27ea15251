#include "fi_window.cuh"

FI_WINDOW(minisgl_fi_window_128_fp8, 128, __nv_bfloat16, __nv_fp8_e4m3)
