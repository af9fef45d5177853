// The configuration of AMX tiles. Included after the file chose its instruction set.
#pragma once
#include <cstdint>
#include <immintrin.h>

namespace plugserve {
namespace {

// gcc 12 moves memory accesses over the tile instructions, which it doesn't know to read memory.
inline void settle_memory() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};

  void set(int tile, int rows, int bytes) {
    num_rows[tile] = static_cast<uint8_t>(rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
  void load() const {
    settle_memory();
    _tile_loadconfig(this);
    settle_memory();
  }
};

} // namespace
} // namespace plugserve
