#include "rows.h"

#include "kernels.h"

namespace plugserve {

namespace {
int64_t num_places(int num_rows, int num_blocks) { // of a row's block
  return static_cast<int64_t>((num_rows + kTile - 1) / kTile) * kTile * num_blocks;
}
} // namespace

int64_t rows_bytes(int num_rows, int num_blocks) {
  return num_places(num_rows, num_blocks) * (kBlock + 4 + 4 + 2 * 4 + 2 * kBlock);
}

Rows rows_in(void *memory, int num_rows, int num_blocks) {
  const int64_t places = num_places(num_rows, num_blocks); // a multiple of 16, so that all arrays are aligned
  auto *at = static_cast<char *>(memory);
  Rows rows{num_rows, num_blocks, nullptr, nullptr, nullptr, nullptr, nullptr};
  const auto take = [&at](int64_t num_bytes) {
    char *taken = at;
    at += num_bytes;
    return taken;
  };
  rows.halves = reinterpret_cast<uint16_t *>(take(places * 2 * kBlock));
  rows.codes = reinterpret_cast<int8_t *>(take(places * kBlock));
  rows.sums = reinterpret_cast<int32_t *>(take(places * 8));
  rows.scales = reinterpret_cast<float *>(take(places * 4));
  rows.scaled_sums = reinterpret_cast<float *>(take(places * 4));
  return rows;
}

int64_t multiply_scratch_bytes(const ps_matrix &matrix) {
  return 8 * kTile * kTile * 4 + 64 + static_cast<int64_t>(matrix.k) * kTile;
}

const Kernels &kernels(int level) {
#if defined(__x86_64__)
  if (level == 3) return amx_kernels;
  if (level == 2) return avx512_kernels;
  if (level == 1) return avx2_kernels;
#endif
  (void)level;
  return scalar_kernels;
}

} // namespace plugserve
