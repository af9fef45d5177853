// Attention's plain code, compiled for AVX2.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include "attention_work.h"
#include "vector_math.h"

namespace plugserve {
namespace {
#include "attention_plain.inc"
#include "attention_weights.inc"

#include "attention_chunks.inc"
} // namespace

const AttentionKernels avx2_attention{attend, merge};

} // namespace plugserve
#endif
