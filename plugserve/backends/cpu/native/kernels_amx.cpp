// Products of many rows on AMX tiles; of few codes' rows with AVX-512, which gives the same numbers.
#if defined(__x86_64__)
#define PLUGSERVE_AVX512 // g++ does not define its own names for what a pragma chooses
#pragma GCC target("prefer-vector-width=512,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8,amx-bf16")
#include "amx_tiles.h"
#include "kernels.h"
#include "vector_math.h"

#include <algorithm>
#include <immintrin.h>

namespace plugserve {
namespace {
#include "layer_ops.inc"
#include "multiply_avx512.inc"

// Tiles 0 to 3 are sums of 16 outputs, 4 and 5 rows of activations, 6 and 7 weights.
void configure(int num_rows, int row_bytes, int weight_rows) {
  TileConfig config;
  for (int tile = 0; tile < 4; tile++) config.set(tile, num_rows, 64);
  for (int tile = 4; tile < 6; tile++) config.set(tile, num_rows, row_bytes);
  for (int tile = 6; tile < 8; tile++) config.set(tile, weight_rows, 64);
  config.load();
}

// ---- codes

struct Tiles {
  int first, end;
};

// Rows whose results stay in the cache while all outputs are computed.
constexpr int kRowTilesAtOnce = 8;

constexpr int kAtOnce = 4; // products in tiles at one time
constexpr int kStored = 4; // products in scratch at one time
constexpr int kLate = 3;   // groups between a product and its scales

struct CodeScratch {
  alignas(64) int32_t products[kStored][kTile][kTile];
  alignas(64) uint8_t codes[]; // [blocks][8][16][4], of one tile with narrow codes
};

const uint8_t *widen(const uint8_t *codes, int num_blocks, uint8_t *wide) {
  for (int b = 0; b < num_blocks; b++) {
    const BlockCodes<true> block(codes + b * 256);
    for (int q = 0; q < 8; q++) _mm512_store_si512(wide + b * 512 + q * 64, block.quads[q]);
  }
  return wide;
}

// Tile numbers have to be literals. Odd and even sums take turns at the tiles of activations and weights.
#define PLUGSERVE_CODE_TILE(sums, x_tile, code_tile)                                                                    \
  inline void multiply_codes_##sums(const int8_t *x, const uint8_t *codes) {                                           \
    _tile_zero(sums);                                                                                                  \
    _tile_loadd(x_tile, x, kBlock);                                                                                    \
    _tile_loadd(code_tile, codes, 64);                                                                                 \
    _tile_dpbsud(sums, x_tile, code_tile);                                                                             \
  }
PLUGSERVE_CODE_TILE(0, 4, 6)
PLUGSERVE_CODE_TILE(1, 5, 7)
PLUGSERVE_CODE_TILE(2, 4, 6)
PLUGSERVE_CODE_TILE(3, 5, 7)

// One kind of matrix: kGroups scales a block, with minima or without.
template <int kGroups, bool kMinima> struct CodeProducts {
  static constexpr int kGroupBytes = kBlock / kGroups;
  const ps_matrix &matrix;
  const Rows &rows;
  CodeScratch &scratch;
  const uint16_t *scales, *minima; // of the tile
  const uint8_t *codes;            // wide
  const int8_t *x;                 // of the tile of rows
  const float *x_scales, *x_scaled_sums;
  const int32_t *x_sums;

  const int8_t *x_of(int g) const {
    return x + g / kGroups * (kTile * kBlock) + g % kGroups * kGroupBytes;
  }
  // Without signs: the sums of rows that pad the tile are anything, and unused.
  uint32_t x_sum(int g, int m) const {
    const auto *sums = reinterpret_cast<const uint32_t *>(x_sums) + g / kGroups * 2 * kTile + m;
    return kGroups == 1 ? sums[0] + sums[kTile] : sums[g % kGroups * kTile];
  }
  int32_t offset_of(int g, int m) const { // of a product, where codes have a zero
    return static_cast<int32_t>(static_cast<uint32_t>(matrix.zero) * x_sum(g, m));
  }
  float x_scaled(int g, int m) const {
    const int64_t at = g / kGroups * kTile + m;
    return kGroups == 1 ? x_scaled_sums[at] : x_scales[at] * static_cast<float>(static_cast<int32_t>(x_sum(g, m)));
  }
  const uint8_t *codes_of(int g) const { return codes + static_cast<int64_t>(g) * (512 / kGroups); }

  // The product of a group goes through three stages, so that tiles and vectors work at the same time: its tile
  // product, a store two groups later, and its scales one group later.
  template <int kRows> void multiply(float *y, int64_t stride, int num_rows, __mmask16 mask) {
    const int num_groups = rows.num_blocks * kGroups;
#define PLUGSERVE_EACH_ROW(what)                                                                                       \
  what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7)                                                      \
  if constexpr (kRows > 8) {                                                                                           \
    what(8) what(9) what(10) what(11) what(12) what(13) what(14) what(15)                                              \
  }
    // Named one by one: compilers keep arrays of sums in memory.
    __m512 sum0{}, sum1{}, sum2{}, sum3{}, sum4{}, sum5{}, sum6{}, sum7{};
    __m512 sum8{}, sum9{}, sum10{}, sum11{}, sum12{}, sum13{}, sum14{}, sum15{};
    settle_memory();
    for (int g = 0; g < num_groups + kLate; g += kAtOnce) {
#define PLUGSERVE_ADD(m)                                                                                               \
  {                                                                                                                    \
    __m512i product = _mm512_load_si512(products + 16 * m);                                                            \
    if constexpr (!kMinima)                                                                                            \
      product = _mm512_sub_epi32(product, _mm512_set1_epi32(offset_of(group, m)));                                     \
    const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale[m]));                                            \
    sum##m = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), factor, sum##m);                                             \
    if constexpr (kMinima) sum##m = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x_scaled(group, m)), sum##m);              \
  }
#define PLUGSERVE_STAGES(i, before)                                                                                    \
  if (g + i < num_groups) multiply_codes_##i(x_of(g + i), codes_of(g + i));                                            \
  if (g + i >= 2 && g + i - 2 < num_groups) _tile_stored(before, scratch.products[(g + i - 2) % kStored], 64);         \
  settle_memory();                                                                                                     \
  if (g + i >= kLate && g + i - kLate < num_groups) {                                                                  \
    const int group = g + i - kLate;                                                                                   \
    const int32_t *products = scratch.products[group % kStored][0];                                                    \
    const float *x_scale = x_scales + group / kGroups * kTile;                                                         \
    const __m512 scale = load_halves(scales + group * kTile);                                                          \
    const __m512 minimum = kMinima ? load_halves(minima + group * kTile) : _mm512_setzero_ps();                        \
    PLUGSERVE_EACH_ROW(PLUGSERVE_ADD)                                                                                  \
  }
      PLUGSERVE_STAGES(0, 2)
      PLUGSERVE_STAGES(1, 3)
      PLUGSERVE_STAGES(2, 0)
      PLUGSERVE_STAGES(3, 1)
    }
#define PLUGSERVE_PUT(m)                                                                                               \
  if (m < num_rows) _mm512_mask_storeu_ps(y + m * stride, mask, sum##m);
    PLUGSERVE_EACH_ROW(PLUGSERVE_PUT)
#undef PLUGSERVE_PUT
#undef PLUGSERVE_STAGES
#undef PLUGSERVE_ADD
#undef PLUGSERVE_EACH_ROW
  }
};

// Some tiles of rows times a tile of the matrix.
template <int kGroups, bool kMinima>
void multiply_codes(const ps_matrix &matrix, const Rows &rows, float *y, int64_t stride, Tiles row_tiles, int tile,
                    __mmask16 mask, CodeScratch &scratch) {
  const int64_t num_blocks = rows.num_blocks, num_groups = num_blocks * kGroups;
  const auto *codes = static_cast<const uint8_t *>(matrix.codes);
  const uint8_t *wide = matrix.format == PS_CODES4
                            ? widen(codes + tile * num_blocks * 256, rows.num_blocks, scratch.codes)
                            : codes + tile * num_blocks * 512;
  for (int t = row_tiles.first; t < row_tiles.end; t++) {
    const int64_t at = t * num_blocks * kTile;
    const int num_rows = rows.num_rows - t * kTile;
    CodeProducts<kGroups, kMinima> products{
        matrix, rows, scratch, matrix.scales + tile * num_groups * kTile,
        kMinima ? matrix.minima + tile * num_groups * kTile : nullptr, wide, rows.codes + at * kBlock,
        rows.scales + at, rows.scaled_sums + at, rows.sums + 2 * at};
    float *here = y + t * kTile * stride + tile * kTile;
    if (rows.num_rows <= kTile / 2)
      products.template multiply<kTile / 2>(here, stride, num_rows, mask);
    else
      products.template multiply<kTile>(here, stride, num_rows, mask);
  }
}

template <int kGroups, bool kMinima>
void multiply_codes(const ps_matrix &matrix, const Rows &rows, float *y, int64_t stride, Tiles tiles, int num_outputs,
                    CodeScratch &scratch) {
  configure(rows.num_rows <= kTile / 2 ? kTile / 2 : kTile, kBlock / kGroups, 8 / kGroups);
  for (int t = 0; t < rows.num_tiles(); t += kRowTilesAtOnce) {
    const Tiles row_tiles{t, std::min(t + kRowTilesAtOnce, rows.num_tiles())};
    for (int tile = tiles.first; tile < tiles.end; tile++)
      multiply_codes<kGroups, kMinima>(matrix, rows, y, stride, row_tiles, tile, lane_mask(num_outputs - tile * kTile),
                                       scratch);
  }
  _tile_release();
}

// ---- bfloat16

// Two tiles of weights in bfloat16 and two of rows: four products for four loads. Tile numbers have to be literals.
void multiply_pair(const Rows &rows, int row_tile, const uint16_t *const (&weights)[2], float (&sums)[4][kTile][kTile]) {
  const int64_t row_bytes = 2 * kBlock, tile_size = int64_t{kTile} * kBlock;
  const uint16_t *x = rows.halves + row_tile * rows.num_blocks * tile_size;
  const bool has_second_rows = row_tile + 1 < rows.num_tiles(), has_second = weights[1] != nullptr;
  settle_memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t b = 0; b < rows.num_blocks; b++) {
    _tile_loadd(4, x + b * tile_size, row_bytes);
    _tile_loadd(6, weights[0] + b * tile_size, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (has_second) {
      _tile_loadd(7, weights[1] + b * tile_size, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (has_second_rows) {
      _tile_loadd(5, x + (rows.num_blocks + b) * tile_size, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (has_second) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  settle_memory();
}

void put(const Rows &rows, int row_tile, const float (&sums)[kTile][kTile], float *y, int64_t stride, __mmask16 mask) {
  for (int m = 0; m < kTile && row_tile * kTile + m < rows.num_rows; m++)
    _mm512_mask_storeu_ps(y + (row_tile * kTile + m) * stride, mask, _mm512_load_ps(sums[m]));
}

void multiply_halves(const ps_matrix &matrix, const Rows &rows, float *y, int64_t stride, int first, int end,
                     int num_outputs) {
  alignas(64) float sums[4][kTile][kTile];
  configure(rows.num_rows < kTile ? rows.num_rows : kTile, 64, kTile);
  for (int tile = first; tile < end; tile += 2) {
    const bool has_second = tile + 1 < end;
    const auto *halves = static_cast<const uint16_t *>(matrix.codes) + int64_t{tile} * matrix.k * kTile;
    const uint16_t *const weights[2] = {halves, has_second ? halves + int64_t{matrix.k} * kTile : nullptr};
    for (int t = 0; t < rows.num_tiles(); t += 2) {
      multiply_pair(rows, t, weights, sums);
      for (int i = 0; i < 4; i++) {
        const int column = (tile + i % 2) * kTile;
        if (i % 2 == 0 || has_second)
          put(rows, t + i / 2, sums[i], y + column, stride, lane_mask(num_outputs - column));
      }
    }
  }
  _tile_release();
}

constexpr int kFewRows = 4; // up to which AVX-512 is faster on codes

void multiply(const ps_matrix &matrix, const Rows &rows, float *y, int64_t stride, int first, int end, int num_outputs,
              void *scratch) {
  if (matrix.format == PS_BFLOAT16) return multiply_halves(matrix, rows, y, stride, first, end, num_outputs);
  if (rows.num_rows <= kFewRows) {
    if (matrix.format == PS_CODES4) return multiply_by_kind<true>(matrix, rows, y, stride, first, end, num_outputs);
    return multiply_by_kind<false>(matrix, rows, y, stride, first, end, num_outputs);
  }
  auto &space = *static_cast<CodeScratch *>(scratch);
  const Tiles tiles{first, end};
  if (matrix.group == kBlock && matrix.minima)
    multiply_codes<1, true>(matrix, rows, y, stride, tiles, num_outputs, space);
  else if (matrix.group == kBlock)
    multiply_codes<1, false>(matrix, rows, y, stride, tiles, num_outputs, space);
  else if (matrix.minima)
    multiply_codes<2, true>(matrix, rows, y, stride, tiles, num_outputs, space);
  else
    multiply_codes<2, false>(matrix, rows, y, stride, tiles, num_outputs, space);
}
} // namespace

const Kernels amx_kernels{quantize, halve, multiply, read_row, add, rms_norm, rotate, gate, cap};

} // namespace plugserve
#endif
