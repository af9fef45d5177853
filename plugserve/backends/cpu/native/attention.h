// Attention over a paged cache of keys and values in bfloat16.
//
// The context is cut into chunks of 128 tokens from its beginning; each chunk gives weighted values, a largest score and
// a sum, which are merged in order. A token's result therefore depends on nothing but its own context: not on the batch,
// the chunks that a prompt comes in, or the number of threads.
#pragma once
#include <cstdint>

namespace plugserve {

struct KvShape {
  int num_kv_heads, head_dim, block_size; // multiples of 16: head_dim and block_size
};

// One layer's part of a block: keys [kv heads][block_size / 16][head_dim / 2][16 tokens][2], then values
// [kv heads][block_size / 16][head_dim / 16][8 token pairs][16][2 tokens], both bfloat16: the layout of AMX tiles.
int64_t layer_block_bytes(const KvShape &shape);

// A step's tokens and rows, as in ps_step.
struct AttentionStep {
  int num_tokens, num_rows, table_stride;
  const int64_t *positions, *slots, *query_starts, *context_lens;
  const int32_t *block_table;
};

struct AttentionLayer {
  int num_heads;
  float scale, soft_cap; // soft_cap 0: none
  int window;            // 0: none
  void *kv;              // this layer in block 0
  int64_t block_stride;  // bytes from a block to the next
};

// Writes the key and value [head_dim] of one token and head.
void write_kv(const KvShape &shape, const AttentionLayer &layer, int64_t slot, int kv_head, const float *key,
              const float *value);

// What a step's attention is divided into: the context of 16 queries (a token and a head each), or, where these are
// few, one chunk of it; merge puts chunks together.
bool has_split_contexts(const KvShape &shape, const AttentionLayer &layer, const AttentionStep &step, int num_threads);

int64_t attention_scratch_bytes(const KvShape &shape, int max_len, int num_threads);

struct AttentionKernels {
  // This thread's share. q and out [tokens][heads][head_dim]; out is written where contexts aren't split.
  void (*attend)(const KvShape &shape, const AttentionLayer &layer, const AttentionStep &step, const float *q,
                 float *out, void *scratch, int thread, int num_threads);
  // Tokens [first, end) of steps with split contexts, when all threads have attended.
  void (*merge)(const KvShape &shape, const AttentionLayer &layer, const AttentionStep &step, float *out,
                const void *scratch, int first, int end);
};

extern const AttentionKernels scalar_attention;
#if defined(__x86_64__)
extern const AttentionKernels avx2_attention, avx512_attention, amx_attention;
#endif

// Those of a level of cpu_features.h.
const AttentionKernels &attention_kernels(int level);

} // namespace plugserve
