#include "fi_run.cuh"

extern "C" int minisgl_fi_run_128(const minisgl_fi_args* args, const int64_t* plan, void* stream) {
  return minisgl::fi_run<128>(args, plan, stream);
}
