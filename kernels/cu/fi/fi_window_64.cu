#include "fi_window.cuh"

FI_WINDOW(minisgl_fi_window_64, 64, __nv_bfloat16, __nv_bfloat16)
