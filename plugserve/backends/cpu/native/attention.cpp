#include "attention.h"

#include "attention_work.h"
#include "vector_math.h"

namespace plugserve {

int64_t layer_block_bytes(const KvShape &shape) {
  return int64_t{2} * 2 * shape.num_kv_heads * shape.head_dim * shape.block_size;
}

void write_kv(const KvShape &shape, const AttentionLayer &layer, int64_t slot, int kv_head, const float *key,
              const float *value) {
  const int64_t block = slot / shape.block_size;
  const int within = static_cast<int>(slot % shape.block_size), token = within % kTokenTile;
  const int64_t tile = static_cast<int64_t>(within / kTokenTile) * kTokenTile * shape.head_dim;
  uint16_t *keys = keys_of(shape, layer, block, kv_head) + tile + 2 * token;
  for (int i = 0; i < shape.head_dim / 2; i++) {
    const uint32_t pair = float_to_bfloat(key[2 * i]) | static_cast<uint32_t>(float_to_bfloat(key[2 * i + 1])) << 16;
    std::memcpy(keys + i * 2 * kTokenTile, &pair, 4);
  }
  uint16_t *values = values_of(shape, layer, block, kv_head) + tile + token / 2 * 32 + token % 2;
  for (int i = 0; i < shape.head_dim; i++) values[i / 16 * 256 + i % 16 * 2] = float_to_bfloat(value[i]);
}

bool has_split_contexts(const KvShape &shape, const AttentionLayer &layer, const AttentionStep &step, int num_threads) {
  const int group = layer.num_heads / shape.num_kv_heads;
  int num_pieces = 0;
  for (int row = 0; row < step.num_rows; row++)
    num_pieces += shape.num_kv_heads * pieces_of(num_queries_of(step, row, group));
  return num_threads > 1 && num_pieces < kFewPieces * num_threads;
}

int64_t attention_scratch_bytes(const KvShape &shape, int max_len, int num_threads) {
  return int64_t{4} * partial_floats(shape) * kFewPieces * num_threads * num_chunks_of(max_len);
}

const AttentionKernels &attention_kernels(int level) {
#if defined(__x86_64__)
  if (level == 3) return amx_attention;
  if (level == 2) return avx512_attention;
  if (level == 1) return avx2_attention;
#endif
  (void)level;
  return scalar_attention;
}

} // namespace plugserve
