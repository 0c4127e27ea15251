// What the two skinny products share: fragments, the sum over warps, and what becomes of a result.
#pragma once

#include <cuda_fp16.h>

#include "../gate.cuh"

namespace minisgl {

// Consumer warps of a block. They share every column of the weight between them, 32 columns at a time.
constexpr uint32_t WARPS = 8;
constexpr uint32_t CONSUMERS = WARPS * 32;

// How a weight lies in memory. A lane takes 16 bytes of a row in one step, LANE columns, and four lanes share a
// row, so that a step of a warp is STEP columns. Eight columns of x are one 16-byte vector.
struct Bf16 {
  static constexpr uint32_t BYTES = 2, LANE = 8, STEP = 4 * LANE;
};
// e4m3, to be multiplied by a scale; the scale of columns is one for BLOCK of them.
struct E4m3 {
  static constexpr uint32_t BYTES = 1, LANE = 16, STEP = 4 * LANE;
};
constexpr uint32_t BLOCK = 128;

// Floats between two tokens of partial sums: without the 4, four lanes would meet in a bank.
template <int TILES>
constexpr uint32_t TOKEN_STRIDE = 16 * TILES + 4;

// d += a * b^T: 16 rows of the weight times 8 tokens over 16 columns, as mma.sync lays them out.
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two e4m3 values in the upper bytes of both halves of `u` as bf16: sign, exponent and fraction go to where bf16 has
// them, which is 2^-120 of the value, subnormals too; the product with 2^120 is exact.
__device__ __forceinline__ uint32_t widen_upper(uint32_t u) {
  const uint32_t small = u & 0x80008000u | u >> 4 & 0x07f007f0u;
  const __nv_bfloat162 up = __halves2bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80));
  const __nv_bfloat162 wide = __hmul2(reinterpret_cast<const __nv_bfloat162&>(small), up);
  return reinterpret_cast<const uint32_t&>(wide);
}

// Four neighbouring e4m3 values as two pairs of bf16. e4m3 has no infinities; NaN, which no checkpoint has, becomes 480.
__device__ __forceinline__ uint2 widen(uint32_t four) {
  return make_uint2(widen_upper(__byte_perm(four, 0, 0x1404)), widen_upper(__byte_perm(four, 0, 0x3424)));
}

// One step: lane 4 g + t brings columns LANE t .. LANE (t + 1) of rows g and g + 8 of each tile, and of token g of
// each group of eight. A dot product does not care in which order columns come, as long as both sides
// agree: so neighbours in memory may stand where the instruction wants 2 t, 2 t + 1, 2 t + 8, 2 t + 9.
template <int GROUPS, int TILES>
__device__ __forceinline__ void multiply(float (&sum)[TILES][GROUPS][4], const uint4 (&low)[TILES],
                                         const uint4 (&high)[TILES], const uint4 (&x)[GROUPS][1]) {
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
      const uint4 b = x[group][0];
      mma(sum[tile][group], low[tile].x, high[tile].x, low[tile].y, high[tile].y, b.x, b.y);
    }
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
      const uint4 b = x[group][0];
      mma(sum[tile][group], low[tile].z, high[tile].z, low[tile].w, high[tile].w, b.z, b.w);
    }
  }
}

// The same product over fp16, for e4m3: a quarter of the instructions that bf16 takes to widen it.
__device__ __forceinline__ void mma_half(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four neighbouring e4m3 values as two pairs of fp16, where the GPU can (from Ada on).
__device__ __forceinline__ uint2 widen_half(uint32_t four) {
  uint2 pairs = make_uint2(0, 0);
#if __CUDA_ARCH__ >= 890
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.rn.f16x2.e4m3x2 %0, low;\ncvt.rn.f16x2.e4m3x2 %1, high;\n}"
      : "=r"(pairs.x), "=r"(pairs.y)
      : "r"(four));
#else
  __trap();
#endif
  return pairs;
}

// x as fp16: a block of columns of a token is multiplied by a power of two that brings its largest value to 2^14 at
// least. What is smaller by 2^29 loses digits, which then are 2^-39 of the largest. Returns the factor that undoes it.
__device__ __forceinline__ float half_factor(float largest) {
  const int exponent = max(int(__float_as_uint(largest) >> 23) - 127, -100);
  return __uint_as_float(uint32_t(127 + exponent - 14) << 23);
}
__device__ __forceinline__ float largest_of(const Vec8& x) {
  float f[VEC], largest = 0.0f;
  unpack(x, f);
#pragma unroll
  for (int i = 0; i < VEC; i++) largest = fmaxf(largest, fabsf(f[i]));
  return largest;
}
template <int LANES>
__device__ __forceinline__ float largest_of_lanes(float x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
// `factor` is half_factor's: a power of two, whose reciprocal is exact.
__device__ __forceinline__ uint4 to_half(const Vec8& x, float factor) {
  float f[VEC];
  unpack(x, f);
  const float up = __uint_as_float((254u << 23) - __float_as_uint(factor));
  uint32_t two[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const __half2 pair = __floats2half2_rn(f[2 * i] * up, f[2 * i + 1] * up);
    two[i] = reinterpret_cast<const uint32_t&>(pair);
  }
  return make_uint4(two[0], two[1], two[2], two[3]);
}

// Several steps of e4m3, each with sums of its own; x is bf16, or fp16.
template <bool HALF, int GROUPS, int TILES, int STEPS>
__device__ __forceinline__ void multiply_all(float (&part)[STEPS][TILES][GROUPS][4], const uint4 (&low)[STEPS][TILES],
                                             const uint4 (&high)[STEPS][TILES],
                                             const uint4 (&x)[STEPS][GROUPS][E4m3::LANE / VEC]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        const uint4 &ls = low[step][tile], &hs = high[step][tile];
        const uint32_t l4 = i == 0 ? ls.x : i == 1 ? ls.y : i == 2 ? ls.z : ls.w;
        const uint32_t h4 = i == 0 ? hs.x : i == 1 ? hs.y : i == 2 ? hs.z : hs.w;
        uint2 l, h;
        if constexpr (HALF) {
          l = widen_half(l4), h = widen_half(h4);
        } else {
          l = widen(l4), h = widen(h4);
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
          const uint4 b = x[step][group][i / 2];
          float(&to)[4] = part[step][tile][group];
          if constexpr (HALF) {
            mma_half(to, l.x, h.x, l.y, h.y, i % 2 ? b.z : b.x, i % 2 ? b.w : b.y);
          } else {
            mma(to, l.x, h.x, l.y, h.y, i % 2 ? b.z : b.x, i % 2 ? b.w : b.y);
          }
        }
      }
    }
  }
}

// What the columns of a block of e4m3 add up to, in two parts, times their scale, of rows g and of rows g + 8, and the
// factors of x, of tokens 2 t and 2 t + 1.
template <int GROUPS, int TILES>
__device__ __forceinline__ void add_scaled(float (&sum)[TILES][GROUPS][4], const float (&a)[TILES][GROUPS][4],
                                           const float (&b)[TILES][GROUPS][4], const float2 (&scale)[TILES],
                                           const float2 (&factor)[GROUPS]) {
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float by = (i < 2 ? scale[tile].x : scale[tile].y) * (i % 2 ? factor[group].y : factor[group].x);
        sum[tile][group][i] += (a[tile][group][i] + b[tile][group][i]) * by;
      }
    }
  }
}

__device__ __forceinline__ uint32_t round_up(uint32_t x, uint32_t unit) { return (x + unit - 1) / unit * unit; }

// Bytes between rows of the weight in shared memory: neighbours must lie 64 bytes apart modulo the 128 of the banks.
template <class W>
__device__ __forceinline__ uint32_t pitch_of(uint32_t columns) {
  return round_up(columns * W::BYTES, 128) + 64;
}

// The same for rows of x. Lanes that read two vectors each are 32 bytes apart: the next row goes between them.
template <class W>
__device__ __forceinline__ uint32_t x_pitch_of(uint32_t columns) {
  return round_up(columns * 2, 128) + (W::LANE == VEC ? 64 : 16);
}

// A row of the weight, from `column` on.
template <class W>
__device__ __forceinline__ const char* weight_at(const minisgl_skinny_args& a, uint32_t row, uint32_t column) {
  return static_cast<const char*>(a.weight) + (size_t(row) * a.k + column) * W::BYTES;
}

// Which row of the weight is row `row` of a tile. A gated tile has 8 rows of the gate, then the same 8 of
// `up`, so that one thread holds both.
__device__ __forceinline__ uint32_t weight_row(const minisgl_skinny_args& a, uint32_t tile, uint32_t row) {
  if (a.epilogue != MINISGL_SKINNY_GATED) return tile * 16 + row;
  return tile * 8 + row % 8 + (row < 8 ? 0 : a.n / 2);
}

// Where the scales of the first and second half of a tile's rows are, in blocks of columns. Rows that are not there have
// the last one's.
struct BlockScales {
  const float *low, *high;  // Null if there are none.
  uint32_t columns;

  BlockScales() = default;
  __device__ __forceinline__ BlockScales(const minisgl_skinny_args& a, uint32_t tile) : columns(a.k) {
    const uint32_t blocks = round_up((a.k + BLOCK - 1) / BLOCK, MINISGL_SCALE_UNIT);
    low = high = nullptr;
    if (a.scale_form != MINISGL_SCALE_BLOCK) return;
    low = a.scales + size_t(min(weight_row(a, tile, 0), a.n - 1) / BLOCK) * blocks;
    high = a.scales + size_t(min(weight_row(a, tile, 8), a.n - 1) / BLOCK) * blocks;
  }
  __device__ __forceinline__ float2 at(uint32_t column) const {
    if (low == nullptr || column >= columns) return make_float2(1.0f, 1.0f);
    return make_float2(low[column / BLOCK], high[column / BLOCK]);
  }
};

// The scale of a normalised row, from the sum of its squares.
__device__ __forceinline__ float norm_scale(const minisgl_skinny_args& a, float squares) {
  return rsqrtf(squares / a.k + a.eps);
}

__device__ __forceinline__ Vec8 normalise(const Vec8& x, const Vec8& weight, float scale) {
  float f[VEC], w[VEC];
  unpack(x, f);
  unpack(weight, w);
#pragma unroll
  for (int i = 0; i < VEC; i++) f[i] = f[i] * scale * w[i];
  return pack(f);
}

__device__ __forceinline__ float sum_squares(const Vec8& x) {
  float f[VEC], squares = 0.0f;
  unpack(x, f);
#pragma unroll
  for (int i = 0; i < VEC; i++) squares += f[i] * f[i];
  return squares;
}

// One of a thread's outputs: the results of a block, dealt out to its consumers.
template <int GROUPS, int TILES>
struct Output {
  uint32_t token, row, column;  // `token` counts from the first of the groups
  bool there;

  __device__ __forceinline__ Output(const minisgl_skinny_args& a, uint32_t first_tile, uint32_t first_token,
                                    uint32_t turn) {
    const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
    const uint32_t at = threadIdx.x + turn * CONSUMERS;
    if (gated) {
      token = at / (8 * TILES), row = at / 8 % TILES * 16 + at % 8;
      column = first_tile * 8 + at % (8 * TILES);
    } else {
      token = at / (16 * TILES), row = at % (16 * TILES);
      column = first_tile * 16 + row;
    }
    there = token < GROUPS * 8 && first_token + token < a.m && column < (gated ? a.n / 2 : a.n);
  }
};

// What is added to a thread's outputs, fetched before the sums are there.
template <class W, int GROUPS, int TILES>
struct Ahead {
  static constexpr int TURNS = (16 * TILES * GROUPS * 8 + CONSUMERS - 1) / CONSUMERS;
  minisgl_bf16 add[TURNS];
  float2 scale[TURNS];  // Of e4m3's rows; of the gate's and of `up`'s.

  __device__ __forceinline__ Ahead(const minisgl_skinny_args& a, uint32_t first_tile, uint32_t first_token) {
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      add[turn] = __float2bfloat16_rn(0.0f);
      scale[turn] = make_float2(1.0f, 1.0f);
      const Output<GROUPS, TILES> output(a, first_tile, first_token, turn);
      if (!output.there) continue;
      if (a.bias) add[turn] = a.bias[output.column];
      if (a.epilogue == MINISGL_SKINNY_ADD) {
        add[turn] = static_cast<const minisgl_bf16*>(a.out)[size_t(first_token + output.token) * a.n + output.column];
      }
      if (W::BYTES == 1 && a.scale_form == MINISGL_SCALE_ROW) {
        scale[turn].x = a.scales[output.column];
        if (a.epilogue == MINISGL_SKINNY_GATED) scale[turn].y = a.scales[a.n / 2 + output.column];
      }
    }
  }
};

// Sums what the warps have in a fixed order and hands it on. `partial` is [WARPS, groups * 8 tokens,
// TOKEN_STRIDE], from `first_token` on; `first_tile` is the first of TILES tiles. Each output belongs to one
// consumer.
template <class W, int GROUPS, int TILES>
__device__ __forceinline__ void finish(const minisgl_skinny_args& a, const float* partial, uint32_t first_tile,
                                       uint32_t first_token, const Ahead<W, GROUPS, TILES>& ahead) {
  constexpr uint32_t STRIDE = TOKEN_STRIDE<TILES>, PART = GROUPS * 8 * STRIDE;
#pragma unroll
  for (int turn = 0; turn < Ahead<W, GROUPS, TILES>::TURNS; turn++) {
    const Output<GROUPS, TILES> output(a, first_tile, first_token, turn);
    if (!output.there) continue;
    const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
    const float* from = partial + output.token * STRIDE + output.row;
    float sum = 0.0f, up = 0.0f;
#pragma unroll
    for (uint32_t part = 0; part < WARPS; part++) {
      sum += from[part * PART];
      if (gated) up += from[part * PART + 8];
    }
    if constexpr (W::BYTES == 1) sum *= ahead.scale[turn].x, up *= ahead.scale[turn].y;
    const size_t token = first_token + output.token, to = token * a.n + output.column;
    if (a.epilogue == MINISGL_SKINNY_F32) {
      static_cast<float*>(a.out)[to] = sum;
    } else if (gated) {
      static_cast<minisgl_bf16*>(a.out)[token * (a.n / 2) + output.column] = minisgl::gated(sum, up, a.gate);
    } else {
      // Of two summands the bias is the one that is near by now.
      if (a.epilogue == MINISGL_SKINNY_ADD && a.bias) sum += __bfloat162float(a.bias[output.column]);
      const minisgl_bf16 value = __float2bfloat16_rn(sum + __bfloat162float(ahead.add[turn]));
      static_cast<minisgl_bf16*>(a.out)[to] = value;
      for (uint32_t peer = 0; peer < a.peers; peer++) send(a.inbox[peer] + to, value);
    }
  }
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

// Weights are read once: what is to stay in the cache should not make room for them.
__device__ __forceinline__ uint64_t read_once() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void copy_once(void* to, const void* from, uint32_t bytes, uint64_t* barrier,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
#endif

// Where a lane's four sums belong: rows g and g + 8 of a tile, tokens 2 t and 2 t + 1 of a group.
template <int GROUPS, int TILES, class Put>
__device__ __forceinline__ void each_sum(uint32_t tokens, const float (&sum)[TILES][GROUPS][4], Put put) {
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t token = group * 8 + 2 * t + i % 2, row = tile * 16 + g + i / 2 * 8;
        if (token < tokens) put(token * TOKEN_STRIDE<TILES> + row, sum[tile][group][i]);
      }
    }
  }
}

}  // namespace minisgl
