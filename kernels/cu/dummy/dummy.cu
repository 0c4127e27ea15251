// Seeded weights for a model of which only the shapes are known: the same bits as the engine's own
// (`daemon/engine/src/weights/dummy.rs`), so that a GPU need not be sent any.
//
//   z = mix(key + index * golden)                       mix: the output function of SplitMix64
//   out[r, c] = truncate_bf16((sum of the four 16-bit parts of z - 131070) * scale + mean)
//   or, of the kernel for e4m3, truncate_e4m3 of the same without a mean, no further from 0 than 448
//   or, of the kernel for e2m1, truncate_e2m1 of elements 2 * index and 2 * index + 1, no further from 0 than 6, the first
//   in the low bits
//   index = first + r * width + c
//
// Shapes: out bf16, e4m3 or pairs of e2m1 [rows, cols], a window of a tensor with `width` columns.
// Bytes moved: 2 * rows * cols written, or rows * cols. About 40 integer operations an element: bound by those.

#include "../common.cuh"

using namespace minisgl;

__device__ __forceinline__ uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// The sum of the four 16-bit parts of element `index`, less its mean, times `scale`.
__device__ __forceinline__ float deviation(const minisgl_dummy_args& a, uint64_t index) {
  const uint64_t z = mix(a.key + index * 0x9e3779b97f4a7c15ull);
  const uint32_t low = uint32_t(z), high = uint32_t(z >> 32);
  const uint32_t sum = (low & 0xffff) + (low >> 16) + (high & 0xffff) + (high >> 16);
  return __fmul_rn(float(int32_t(sum) - 2 * 65535), a.scale);
}

// A code of a sign, an exponent with the bias BIAS and MANTISSA bits: the next to `value` towards zero. An f32 has its
// exponent and 127: times 2^(BIAS - 127), its upper bits are the code. That may be a subnormal, which is kept.
template <int MANTISSA, int BIAS>
__device__ __forceinline__ uint32_t code_of(float value, uint32_t highest, uint32_t sign) {
  const uint32_t moved = __float_as_uint(__fmul_rn(fabsf(value), __uint_as_float(uint32_t(BIAS) << 23)));
  return min(moved >> (23 - MANTISSA), highest) | (value < 0.0f ? sign : 0u);
}

// Calls make(index) for each element, and puts what it gives into `out`.
template <class T, class Make>
__device__ __forceinline__ void fill(const minisgl_dummy_args& a, T* out, Make make) {
  for (uint32_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const uint64_t first = a.first + uint64_t(row) * a.width;
    T* to = out + size_t(row) * a.cols;
    for (uint32_t col = blockIdx.x * blockDim.x + threadIdx.x; col < a.cols;
         col += gridDim.x * blockDim.x) {
      to[col] = make(first + col);
    }
  }
}

KERNEL minisgl_dummy(const __grid_constant__ minisgl_dummy_args a) {
  wait_for_inputs();
  let_next_start();
  fill(a, reinterpret_cast<uint16_t*>(a.out), [&](uint64_t index) {
    // Two roundings, as on the host: no fused multiply-add.
    return uint16_t(__float_as_uint(__fadd_rn(deviation(a, index), a.mean)) >> 16);
  });
}

KERNEL minisgl_dummy_e4m3(const __grid_constant__ minisgl_dummy_args a) {
  wait_for_inputs();
  let_next_start();
  fill(a, reinterpret_cast<uint8_t*>(a.out), [&](uint64_t index) {
    return uint8_t(code_of<3, 7>(deviation(a, index), 0x7e, 0x80));
  });
}

KERNEL minisgl_dummy_e2m1(const __grid_constant__ minisgl_dummy_args a) {
  wait_for_inputs();
  let_next_start();
  fill(a, reinterpret_cast<uint8_t*>(a.out), [&](uint64_t index) {
    const auto code = [&](uint64_t at) { return code_of<1, 1>(deviation(a, at), 0x7, 0x8); };
    return uint8_t(code(2 * index) | code(2 * index + 1) << 4);
  });
}
