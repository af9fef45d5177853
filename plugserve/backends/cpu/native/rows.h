// Rows of activations in the forms that matrices multiply. Rows lie in tiles of 16, and a row's k inputs in blocks of
// 32, so that a block of a tile is contiguous.
#pragma once
#include <cstdint>

namespace plugserve {

constexpr int kTile = 16;  // rows of a tile, and outputs of a matrix's tile
constexpr int kBlock = 32; // inputs that share a scale

// num_rows rows of num_blocks blocks, as codes, bfloat16 or both. What pads the last tile may be anything.
struct Rows {
  int num_rows, num_blocks;
  int8_t *codes;      // [tiles][blocks][16][32]: value = scale * code
  float *scales;      // [tiles][blocks][16]
  float *scaled_sums; // [tiles][blocks][16]: scale * the block's codes' sum
  int32_t *sums;      // [tiles][blocks][2][16]: the codes' sums, of each half of a block
  uint16_t *halves;   // [tiles][blocks][16][32] bfloat16

  int num_tiles() const { return (num_rows + kTile - 1) / kTile; }
};

// Bytes of the arrays of so many rows and blocks, and the arrays themselves within memory (aligned to 64).
int64_t rows_bytes(int num_rows, int num_blocks);
Rows rows_in(void *memory, int num_rows, int num_blocks);

} // namespace plugserve
