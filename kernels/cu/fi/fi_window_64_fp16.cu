#include "fi_window.cuh"

FI_WINDOW(minisgl_fi_window_64_fp16, 64, __half, __half)
