#include "fi_window.cuh"

FI_WINDOW(minisgl_fi_window_128_fp16, 128, __half, __half)
