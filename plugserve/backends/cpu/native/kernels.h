// What a step computes beside attention, one implementation for each instruction set. Apart from the last bits of
// bfloat16 products on AMX, all levels give the same numbers, and a row's never depend on the other rows.
#pragma once
#include "native.h"
#include "rows.h"

namespace plugserve {

struct Kernels {
  // Rows [first, end) of values [..][stride] as int8 codes (scale = largest / 127) or bfloat16; k values each.
  void (*quantize)(const float *values, int64_t stride, int k, int first, int end, const Rows &rows);
  void (*halve)(const float *values, int64_t stride, int k, int first, int end, const Rows &rows);
  // y[m][16 i + r] for tiles i in [first, end) of the matrix, of which only outputs below num_outputs are written.
  // scratch: multiply_scratch_bytes(matrix) for this thread alone.
  void (*multiply)(const ps_matrix &matrix, const Rows &rows, float *y, int64_t stride, int first, int end,
                   int num_outputs, void *scratch);
  // A row of a matrix as floats [k].
  void (*read_row)(const ps_matrix &matrix, int64_t row, float *values);

  void (*add)(float *x, const float *y, int n); // x += y
  void (*rms_norm)(const float *x, const float *weight, int n, float eps, float *y);
  void (*rotate)(float *head, const float *cos, const float *sin, int num_pairs);
  void (*gate)(int activation, float *gate, const float *up, int n); // gate = act(gate) * up
  void (*cap)(float *x, int n, float cap);                           // cap * tanh(x / cap)
};

int64_t multiply_scratch_bytes(const ps_matrix &matrix);

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels, amx_kernels;
#endif

// Those of a level of cpu_features.h.
const Kernels &kernels(int level);

} // namespace plugserve
