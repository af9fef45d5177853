// Attention on AMX tiles; heads that don't fill them use AVX-512.
#if defined(__x86_64__)
#define PLUGSERVE_AVX512 // g++ does not define its own names for what a pragma chooses
#pragma GCC target("prefer-vector-width=512,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16")
#include <immintrin.h>

#include "amx_tiles.h"
#include "attention_work.h"
#include "vector_math.h"

namespace plugserve {
namespace {
#include "attention_avx512.inc"

// Tiles 0 to 3 are sums, 4 queries (32 inputs), 5 weights (16 tokens), 6 keys and 7 values.
void configure(int num_rows) {
  TileConfig config;
  for (int tile = 0; tile < 4; tile++) config.set(tile, num_rows, 64);
  config.set(4, num_rows, 64);
  config.set(5, num_rows, 32);
  config.set(6, 16, 64);
  config.set(7, 8, 64);
  config.load();
}

// Tile numbers have to be literals.
#define PLUGSERVE_EACH_SUM(what)                                                                                       \
  what(0) what(1) what(2) what(3)

void score(const Queries &queries, int head_dim, const uint16_t *const *keys, Tiles tiles, float (*scores)[kChunk]) {
  if (head_dim % 32 != 0) return score_plainly(queries, head_dim, keys, tiles, scores);
  configure(queries.count);
  for (int t = tiles.first; t < tiles.end; t += 4) {
    const int count = tiles.end - t;
#define PLUGSERVE_ZERO(i) _tile_zero(i);
#define PLUGSERVE_SCORE(i)                                                                                             \
  if (i < count) {                                                                                                     \
    _tile_loadd(6, keys[t + i] + d * 32 * kTokenTile, 64);                                                             \
    _tile_dpbf16ps(i, 4, 6);                                                                                           \
  }
#define PLUGSERVE_STORE(i)                                                                                             \
  if (i < count) _tile_stored(i, scores[0] + (t + i) * kTokenTile, kChunk * 4);
    PLUGSERVE_EACH_SUM(PLUGSERVE_ZERO)
    for (int d = 0; d < head_dim / 32; d++) {
      _tile_loadd(4, queries.values[d], 64);
      PLUGSERVE_EACH_SUM(PLUGSERVE_SCORE)
    }
    PLUGSERVE_EACH_SUM(PLUGSERVE_STORE)
  }
  settle_memory();
}

void weigh(const Weights &weights, int head_dim, const uint16_t *const *values, Tiles tiles, float *sums) {
  if (head_dim % 32 != 0) return weigh_plainly(weights, head_dim, values, tiles, sums);
  settle_memory(); // the tiles' configuration is score's
  for (int d = 0; d < head_dim; d += 64) {
    const int count = (head_dim - d) / 16;
#define PLUGSERVE_WEIGH(i)                                                                                             \
  if (i < count) {                                                                                                     \
    _tile_loadd(7, values[t] + (d + 16 * i) * 16, 64);                                                                 \
    _tile_dpbf16ps(i, 5, 7);                                                                                           \
  }
#define PLUGSERVE_PUT(i)                                                                                               \
  if (i < count) _tile_stored(i, sums + d + 16 * i, static_cast<size_t>(head_dim) * 4);
    PLUGSERVE_EACH_SUM(PLUGSERVE_ZERO)
    for (int t = tiles.first; t < tiles.end; t++) {
      _tile_loadd(5, weights.values[0] + t * kTokenTile, kChunk * 2);
      PLUGSERVE_EACH_SUM(PLUGSERVE_WEIGH)
    }
    PLUGSERVE_EACH_SUM(PLUGSERVE_PUT)
  }
  settle_memory();
  _tile_release();
}

// 2^x within 2 units in the last place: a polynomial in what is left of x beside a whole number.
__m512 power_of_two(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.3333558e-3f);
  for (const float coefficient : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(p, whole);
}

void weigh_row(const AttentionLayer &layer, float *scores, Tiles tiles, int first, int end, uint16_t *weights,
               float &largest, float &sum) {
  constexpr float kLog2OfE = 1.44269504f, kLogOf2 = 0.69314718f;
  const bool is_capped = layer.soft_cap > 0.0f;
  const __m512 factor = _mm512_set1_ps(is_capped ? kLog2OfE : layer.scale * kLog2OfE), hidden = _mm512_set1_ps(kHidden);
  __m512 most = hidden;
  for (int t = tiles.first; t < tiles.end; t++) {
    float *here = scores + t * kTokenTile;
    if (is_capped)
      for (int j = 0; j < kLanes; j++) here[j] = layer.soft_cap * fast_tanh(here[j] * layer.scale / layer.soft_cap);
    __m512 score = _mm512_mul_ps(_mm512_loadu_ps(here), factor);
    const int from = first - t * kTokenTile, to = end - t * kTokenTile;
    if (from > 0 || to < kTokenTile) {
      const uint32_t below = to >= kTokenTile ? 0xffff : to <= 0 ? 0 : (1u << to) - 1;
      const uint32_t above = from <= 0 ? 0xffff : from >= kTokenTile ? 0 : 0xffffu << from;
      score = _mm512_mask_mov_ps(hidden, static_cast<__mmask16>(below & above), score);
    }
    most = _mm512_max_ps(most, score);
    _mm512_storeu_ps(here, score);
  }
  const float top = _mm512_reduce_max_ps(most);
  largest = top == kHidden ? kHidden : top * kLogOf2;
  const __m512 shift = _mm512_set1_ps(top == kHidden ? 0.0f : top);
  __m512 sums = _mm512_setzero_ps();
  for (int t = tiles.first; t < tiles.end; t++) {
    const __m512 weight = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(scores + t * kTokenTile), shift));
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(weight);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(weights + t * kTokenTile), rounded);
    sums = _mm512_add_ps(sums, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
  }
  alignas(64) float lanes[kLanes];
  _mm512_store_ps(lanes, sums);
  sum = sum_lanes(lanes);
}

#include "attention_chunks.inc"
} // namespace

const AttentionKernels amx_attention{attend, merge};

} // namespace plugserve
#endif
