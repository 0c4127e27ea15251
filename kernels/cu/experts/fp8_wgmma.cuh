// Products of the tensor cores of Hopper over e4m3: 64 rows of the weights times N rows of x over 32 columns, as wgmma.cuh
// has those of bf16 over 16.
#pragma once

#include "wgmma.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

PRODUCT_OF_SHARED(product8, 16, "m64n32k32.f32.e4m3.e4m3", "%16", "%17", "%18", "")
PRODUCT_OF_SHARED(product8, 32, "m64n64k32.f32.e4m3.e4m3", "%32", "%33", "%34", "")
PRODUCT_OF_SHARED(product8, 48, "m64n96k32.f32.e4m3.e4m3", "%48", "%49", "%50", "")
PRODUCT_OF_SHARED(product8, 64, "m64n128k32.f32.e4m3.e4m3", "%64", "%65", "%66", "")

#endif

}  // namespace minisgl
