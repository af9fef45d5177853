// Attention with AVX-512.
#if defined(__x86_64__)
#define PLUGSERVE_AVX512 // g++ does not define its own names for what a pragma chooses
#pragma GCC target("prefer-vector-width=512,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#include <immintrin.h>

#include "attention_work.h"
#include "vector_math.h"

namespace plugserve {
namespace {
#include "attention_avx512.inc"
#include "attention_weights.inc"

void score(const Queries &queries, int head_dim, const uint16_t *const *keys, Tiles tiles, float (*scores)[kChunk]) {
  score_plainly(queries, head_dim, keys, tiles, scores);
}

void weigh(const Weights &weights, int head_dim, const uint16_t *const *values, Tiles tiles, float *sums) {
  weigh_plainly(weights, head_dim, values, tiles, sums);
}

#include "attention_chunks.inc"
} // namespace

const AttentionKernels avx512_attention{attend, merge};

} // namespace plugserve
#endif
