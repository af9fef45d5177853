#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <initializer_list>
#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace plugserve {

namespace {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers read_cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool has_bits(uint64_t value, std::initializer_list<int> bits) {
  for (int bit : bits)
    if (!(value >> bit & 1)) return false;
  return true;
}

// The register states that the system saves: bits 1 and 2 for AVX, 5 to 7 for AVX-512, 17 and 18 for AMX.
uint64_t saved_states() {
  uint32_t low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives a process its tiles only when asked.
bool request_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

int find_level() {
  const Registers first = read_cpuid(1, 0), seventh = read_cpuid(7, 0);
  constexpr int kFma = 12, kXsave = 27, kF16c = 29;
  if (!has_bits(first.ecx, {kFma, kXsave, kF16c}) || !has_bits(saved_states(), {1, 2})) return 0;
  constexpr int kAvx2 = 5;
  if (!has_bits(seventh.ebx, {kAvx2})) return 0;
  constexpr int kAvx512f = 16, kAvx512dq = 17, kAvx512bw = 30, kAvx512vl = 31, kVnni = 11;
  if (!has_bits(seventh.ebx, {kAvx512f, kAvx512dq, kAvx512bw, kAvx512vl}) || !has_bits(seventh.ecx, {kVnni}) ||
      !has_bits(saved_states(), {5, 6, 7}))
    return 1;
  constexpr int kBf16Tiles = 22, kTiles = 24, kInt8Tiles = 25;
  constexpr int kAvx512Bf16 = 5;
  if (!has_bits(seventh.edx, {kBf16Tiles, kTiles, kInt8Tiles}) || !has_bits(read_cpuid(7, 1).eax, {kAvx512Bf16}) || !has_bits(saved_states(), {17, 18}) ||
      !request_tiles())
    return 2;
  return 3;
}

} // namespace

int best_level() {
  static const int level = find_level();
  return level;
}

} // namespace plugserve

#else
namespace plugserve {
int best_level() { return 0; }
} // namespace plugserve
#endif
