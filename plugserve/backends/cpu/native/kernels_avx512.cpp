// Products with AVX-512 and its byte products (VNNI).
#if defined(__x86_64__)
#define PLUGSERVE_AVX512 // g++ does not define its own names for what a pragma chooses
#pragma GCC target("prefer-vector-width=512,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>

#include "kernels.h"
#include "vector_math.h"

namespace plugserve {
namespace {
#include "layer_ops.inc"
#include "multiply_avx512.inc"
#include "multiply_halves_avx512.inc"

void multiply(const ps_matrix &matrix, const Rows &rows, float *y, int64_t stride, int first, int end, int num_outputs,
              void *) {
  if (matrix.format == PS_BFLOAT16)
    multiply_halves_few(matrix, rows, y, stride, first, end, num_outputs);
  else if (matrix.format == PS_CODES4)
    multiply_by_kind<true>(matrix, rows, y, stride, first, end, num_outputs);
  else
    multiply_by_kind<false>(matrix, rows, y, stride, first, end, num_outputs);
}
} // namespace

const Kernels avx512_kernels{quantize, halve, multiply, read_row, add, rms_norm, rotate, gate, cap};

} // namespace plugserve
#endif
