// In the place of flashinfer/cutlass_utils.cuh, which includes CUTLASS's test tools and they headers that the
// compiler's wheels lack. The Hopper template needs nothing of it but what it includes.
#pragma once

#define FLASHINFER_CUTLASS_UTILS_CUH_

#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/numeric_types.h>
