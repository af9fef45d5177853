// The C interface of the native CPU backend. Plain structs and functions, called from Python through ctypes (the
// interpreter lock is released during a call). All pointers stay valid as long as the model lives.
#pragma once
#include <stdint.h>

#define PS_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// ---- weights

enum ps_format {
  PS_BFLOAT16 = 1, // codes: uint16 bfloat16 tiles [n/16][k/2][16][2]: value (16 i + r, 2 j + s) lies at [i][j][r][s]
  PS_CODES8 = 2,   // codes: uint8 tiles [n/16][k/32][8][16][4]: code (16 i + r, 32 b + 4 q + s) lies at [i][b][q][r][s]
  PS_CODES4 = 3,   // codes: nibbles in tiles [n/16][k/32][4][16][4] of bytes: byte [i][b][q][r][s] has the code of
                   // (16 i + r, 32 b + 4 q + s) in its low nibble and of (16 i + r, 32 b + 16 + 4 q + s) in its high one
};

// A matrix with n outputs and k inputs, both padded with zeros: n to a multiple of 16, k to one of 32. For codes,
// weight = scale * (code - zero) without minima, scale * code + minimum with them; one scale (and minimum) for each
// `group` inputs (16 or 32) of an output: scales and minima are float16 [n/16][k/group][16].
typedef struct {
  int32_t format, n, k, group, zero;
  const void *codes;
  const uint16_t *scales;
  const uint16_t *minima; // NULL: symmetric, around zero
  const float *bias;      // [n] or NULL
} ps_matrix;

// ---- model

typedef struct {
  ps_matrix q, k, v, o, gate, up, down;
  const float *input_norm, *mlp_norm;          // [hidden]; norms that are offset are stored with 1 added
  const float *q_norm, *k_norm;                // [head_dim] or NULL
  const float *post_attention_norm, *post_mlp_norm; // [hidden] or NULL
  int32_t window;                              // a token sees itself and window - 1 before it; 0: all
  int32_t rope;                                // index into ps_model_config.ropes
} ps_layer;

typedef struct {
  const float *cos, *sin; // [max_positions][rotary_dims / 2]; yarn's attention factor is multiplied in
  int32_t rotary_dims;    // the first ones of each head are rotated: (i, i + rotary_dims / 2) are a pair, as Hugging Face
} ps_rope;

enum ps_activation { PS_SILU = 0, PS_GELU = 1, PS_GELU_TANH = 2 };

typedef struct {
  int32_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size, activation;
  float norm_eps, attention_scale, attention_soft_cap, logits_soft_cap, embedding_scale; // caps: 0 for none; scale: 1 for none
  const ps_layer *layers;
  const ps_rope *ropes;
  ps_matrix embedding, head; // the same pointers where they are tied
  const float *final_norm;
  int32_t block_size; // tokens of a KV block; a multiple of 16
  int32_t num_blocks;
  void *kv;           // ps_kv_bytes(...) bytes, aligned to 64, zeroed
  int32_t max_tokens; // of a step
  int32_t max_rows;   // of a step
  int32_t max_len;    // of a sequence
  int32_t num_threads;
  int32_t level;      // of ps_levels(); -1: the best that this CPU has
} ps_model_config;

typedef struct {
  int32_t num_tokens, num_rows, num_wanted, table_stride;
  const int64_t *token_ids, *positions, *slots; // [T]; slot = block * block_size + offset
  const int64_t *query_starts;                  // [B + 1]
  const int64_t *context_lens;                  // [B], this step's tokens included
  const int32_t *block_table;                   // [B][table_stride]
  const int64_t *wanted;                        // [W] indices into T
  float *logits;                                // [W][vocab_size], float32, soft cap applied
  float *hidden;                                // [T][hidden_size] after the final norm, or NULL
} ps_step;

typedef struct ps_model ps_model;

// The version of this interface; the Python side refuses another one.
enum { PS_VERSION = 1 };
PS_API int32_t ps_version(void);

// The instruction sets that this library has code for and this CPU can run, best first, as "amx avx512 avx2"; the index
// of a word is no level: levels are 0 scalar (reference), 1 avx2, 2 avx512 (vnni, bf16), 3 amx.
PS_API const char *ps_levels(void);
PS_API int64_t ps_kv_bytes_per_block(const ps_model_config *);
PS_API ps_model *ps_create(const ps_model_config *, char *error, int32_t error_size); // NULL and a line in error
PS_API int32_t ps_compute(ps_model *, const ps_step *);                              // 0, or an error number
PS_API void ps_logits(ps_model *, int32_t num, const float *hidden, float *logits);  // of states after the final norm, [num][H]
PS_API void ps_destroy(ps_model *);                                                  // ends its threads

#ifdef __cplusplus
}
#endif
