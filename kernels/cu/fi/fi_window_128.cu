#include "fi_window.cuh"

FI_WINDOW(minisgl_fi_window_128, 128, __nv_bfloat16, __nv_bfloat16)
