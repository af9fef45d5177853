// The plain code, compiled for AVX2.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include "kernels.h"
#include "vector_math.h"

namespace plugserve {
namespace {
#include "layer_ops.inc"
#include "multiply_plain.inc"
} // namespace

const Kernels avx2_kernels{quantize, halve, multiply, read_row, add, rms_norm, rotate, gate, cap};

} // namespace plugserve
#endif
