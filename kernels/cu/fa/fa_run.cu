#include "fa_run.cuh"

// One source for all: most of the time goes into reading CUTLASS, and a compiler of it takes gigabytes.
extern "C" int minisgl_fa_run_64(const minisgl_fa_args* args, void* stream) {
  return minisgl::fa_run<64, 192, 96>(args, stream);
}

extern "C" int minisgl_fa_run_128(const minisgl_fa_args* args, void* stream) {
  return minisgl::fa_run<128, 128, 96>(args, stream);
}

extern "C" int minisgl_fa_run_256(const minisgl_fa_args* args, void* stream) {
  return minisgl::fa_run<256, 128, 64>(args, stream);
}
