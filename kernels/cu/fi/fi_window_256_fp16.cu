#include "fi_window.cuh"

FI_WINDOW(minisgl_fi_window_256_fp16, 256, __half, __half)
