// How attention's work is divided, the same for all instruction sets.
#pragma once
#include <algorithm>
#include <cstring>

#include "attention.h"

namespace plugserve {

constexpr int kTokenTile = 16;   // tokens of a tile of keys
constexpr int kQueryTile = 16;   // queries of a piece of work
constexpr int kChunk = 128;      // tokens of a chunk
constexpr int kFewPieces = 8;    // a thread: with fewer, contexts are split
constexpr float kHidden = -1e30f; // the score of what a query can't see

// Up to 16 queries of one row and kv head; query i is token i / group of the row, and head i % group.
struct Piece {
  int row, kv_head, first, count;
};

inline int pieces_of(int num_queries) { return (num_queries + kQueryTile - 1) / kQueryTile; }

inline int num_queries_of(const AttentionStep &step, int row, int group) {
  return static_cast<int>(step.query_starts[row + 1] - step.query_starts[row]) * group;
}

inline int num_chunks_of(int64_t context_len) { return static_cast<int>((context_len + kChunk - 1) / kChunk); }

constexpr int kMaxHeadDim = 256;

// Tiles of a chunk's tokens.
struct Tiles {
  int first, end;
};

struct Queries {
  int count;
  alignas(64) uint16_t values[kMaxHeadDim / 32][kQueryTile][32]; // bfloat16
};

struct Weights {
  int count;
  alignas(64) uint16_t values[kQueryTile][kChunk]; // bfloat16
};

struct Workspace { // of a thread
  Queries queries;
  Weights weights;
  alignas(64) float scores[kQueryTile][kChunk];
  alignas(64) uint16_t last_values[kTokenTile * kMaxHeadDim];
  alignas(64) float total_values[kQueryTile * kMaxHeadDim], chunk_values[kQueryTile * kMaxHeadDim];
  float total_largest[kQueryTile], total_sums[kQueryTile], chunk_largest[kQueryTile], chunk_sums[kQueryTile];
};

// Calls work(piece, number of the piece) for all pieces in order.
template <typename Work>
void for_each_piece(const KvShape &shape, const AttentionLayer &layer, const AttentionStep &step, Work work) {
  const int group = layer.num_heads / shape.num_kv_heads;
  int number = 0;
  for (int row = 0; row < step.num_rows; row++) {
    const int num_queries = num_queries_of(step, row, group);
    for (int head = 0; head < shape.num_kv_heads; head++)
      for (int first = 0; first < num_queries; first += kQueryTile)
        work(Piece{row, head, first, std::min(kQueryTile, num_queries - first)}, number++);
  }
}

// What a chunk, or all chunks so far, gave 16 queries.
struct Partial {
  float *values; // [16][head_dim]
  float *largest, *sums;
};

inline int64_t partial_floats(const KvShape &shape) { return kQueryTile * (static_cast<int64_t>(shape.head_dim) + 2); }

inline Partial partial_at(const KvShape &shape, void *scratch, int64_t number) {
  float *at = static_cast<float *>(scratch) + number * partial_floats(shape);
  const int64_t size = kQueryTile * static_cast<int64_t>(shape.head_dim);
  return {at, at + size, at + size + kQueryTile};
}

inline uint16_t *keys_of(const KvShape &shape, const AttentionLayer &layer, int64_t block, int kv_head) {
  auto *base = reinterpret_cast<uint16_t *>(static_cast<char *>(layer.kv) + block * layer.block_stride);
  return base + static_cast<int64_t>(kv_head) * shape.block_size * shape.head_dim;
}

inline uint16_t *values_of(const KvShape &shape, const AttentionLayer &layer, int64_t block, int kv_head) {
  return keys_of(shape, layer, block, shape.num_kv_heads + kv_head);
}

} // namespace plugserve
