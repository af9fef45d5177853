// Attention on AMX tiles; heads that don't fill them use AVX-512.
#if defined(__x86_64__)
#define PLUGSERVE_AVX512 // g++ does not define its own names for what a pragma chooses
#pragma GCC target("prefer-vector-width=512,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,amx-tile,amx-bf16")
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

#include "attention_chunks.inc"
} // namespace

const AttentionKernels amx_attention{attend, merge};

} // namespace plugserve
#endif
