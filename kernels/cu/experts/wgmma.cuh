// Products of the tensor cores of Hopper: 64 rows of the weights times N rows of x over 16 columns.
#pragma once

#include "../wgmma.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

PRODUCT_OF_SHARED(product, 16, "m64n32k16.f32.bf16.bf16", "%16", "%17", "%18", ", 0, 0")
PRODUCT_OF_SHARED(product, 32, "m64n64k16.f32.bf16.bf16", "%32", "%33", "%34", ", 0, 0")
PRODUCT_OF_SHARED(product, 48, "m64n96k16.f32.bf16.bf16", "%48", "%49", "%50", ", 0, 0")
PRODUCT_OF_SHARED(product, 64, "m64n128k16.f32.bf16.bf16", "%64", "%65", "%66", ", 0, 0")
PRODUCT_OF_SHARED(product, 80, "m64n160k16.f32.bf16.bf16", "%80", "%81", "%82", ", 0, 0")
PRODUCT_OF_SHARED(product, 96, "m64n192k16.f32.bf16.bf16", "%96", "%97", "%98", ", 0, 0")
PRODUCT_OF_SHARED(product, 112, "m64n224k16.f32.bf16.bf16", "%112", "%113", "%114", ", 0, 0")
PRODUCT_OF_SHARED(product, 128, "m64n256k16.f32.bf16.bf16", "%128", "%129", "%130", ", 0, 0")

#endif

}  // namespace minisgl
