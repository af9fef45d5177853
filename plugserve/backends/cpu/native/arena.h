// Zeroed memory for buffers that live as long as a model; pages that are never written take none.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace plugserve {

class Arena {
public:
  // num_bytes, aligned to 64 bytes.
  void *bytes(int64_t num_bytes) {
    pieces_.emplace_back(std::calloc(1, static_cast<size_t>(num_bytes) + 64));
    if (!pieces_.back()) throw std::bad_alloc();
    return reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(pieces_.back().get()) + 63) & ~uintptr_t{63});
  }
  float *floats(int64_t count) { return static_cast<float *>(bytes(4 * count)); }

private:
  struct Free {
    void operator()(void *memory) const { std::free(memory); }
  };
  std::vector<std::unique_ptr<void, Free>> pieces_;
};

} // namespace plugserve
