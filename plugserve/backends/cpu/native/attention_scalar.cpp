// Attention's plain code, for any CPU: the reference of the other levels.
#include "attention_work.h"
#include "vector_math.h"

namespace plugserve {
namespace {
#include "attention_plain.inc"
#include "attention_weights.inc"

#include "attention_chunks.inc"
} // namespace

const AttentionKernels scalar_attention{attend, merge};

} // namespace plugserve
