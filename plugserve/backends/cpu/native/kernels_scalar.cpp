// The plain code, for any CPU: the reference of the other levels.
#include "kernels.h"
#include "vector_math.h"

namespace plugserve {
namespace {
#include "layer_ops.inc"
#include "multiply_plain.inc"
} // namespace

const Kernels scalar_kernels{quantize, halve, multiply, read_row, add, rms_norm, rotate, gate, cap};

} // namespace plugserve
