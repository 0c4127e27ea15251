// Seeded weights for a model of which only the shapes are known: the same bits as the engine's own
// (`daemon/engine/src/weights/dummy.rs`), so that a GPU need not be sent any.
//
//   z = mix(key + index * golden)                       mix: the output function of SplitMix64
//   out[r, c] = truncate_bf16((sum of the four 16-bit parts of z - 131070) * scale + mean)
//   index = first + r * width + c
//
// Shapes: out bf16 [rows, cols], a window of a tensor with `width` columns.
// Bytes moved: 2 * rows * cols written. About 40 integer operations an element: bound by those.

#include "../common.cuh"

using namespace minisgl;

__device__ __forceinline__ uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

KERNEL minisgl_dummy(const __grid_constant__ minisgl_dummy_args a) {
  wait_for_inputs();
  let_next_start();

  uint16_t* out = reinterpret_cast<uint16_t*>(a.out);
  for (uint32_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const uint64_t first = a.first + uint64_t(row) * a.width;
    uint16_t* to = out + size_t(row) * a.cols;
    for (uint32_t col = blockIdx.x * blockDim.x + threadIdx.x; col < a.cols;
         col += gridDim.x * blockDim.x) {
      const uint64_t z = mix(a.key + (first + col) * 0x9e3779b97f4a7c15ull);
      const uint32_t low = uint32_t(z), high = uint32_t(z >> 32);
      const uint32_t sum = (low & 0xffff) + (low >> 16) + (high & 0xffff) + (high >> 16);
      // Two roundings, as on the host: no fused multiply-add.
      const float deviation = __fmul_rn(float(int32_t(sum) - 2 * 65535), a.scale);
      to[col] = uint16_t(__float_as_uint(__fadd_rn(deviation, a.mean)) >> 16);
    }
  }
}
