// Products of the tensor cores of Hopper over e4m3: 64 rows of one operand times N of the other over 32 columns, both in shared
// memory. N is twice as many as a thread has sums.
#pragma once

#include "wgmma.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

PRODUCT_OF_SHARED(product8, 4, "m64n8k32.f32.e4m3.e4m3", "%4", "%5", "%6", "")
PRODUCT_OF_SHARED(product8, 8, "m64n16k32.f32.e4m3.e4m3", "%8", "%9", "%10", "")
PRODUCT_OF_SHARED(product8, 12, "m64n24k32.f32.e4m3.e4m3", "%12", "%13", "%14", "")
PRODUCT_OF_SHARED(product8, 16, "m64n32k32.f32.e4m3.e4m3", "%16", "%17", "%18", "")
PRODUCT_OF_SHARED(product8, 24, "m64n48k32.f32.e4m3.e4m3", "%24", "%25", "%26", "")
PRODUCT_OF_SHARED(product8, 32, "m64n64k32.f32.e4m3.e4m3", "%32", "%33", "%34", "")
PRODUCT_OF_SHARED(product8, 48, "m64n96k32.f32.e4m3.e4m3", "%48", "%49", "%50", "")
PRODUCT_OF_SHARED(product8, 64, "m64n128k32.f32.e4m3.e4m3", "%64", "%65", "%66", "")
PRODUCT_OF_SHARED(product8, 96, "m64n192k32.f32.e4m3.e4m3", "%96", "%97", "%98", "")

#endif

}  // namespace minisgl
