// Loops over 16 lanes that compilers turn into vector instructions, in whichever instruction set the including file
// chose. Sums run in lanes and end in one fixed order, so that every level gives the same number.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace plugserve {
namespace {

constexpr int kLanes = 16;

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float half_to_float(uint16_t half) { // IEEE float16
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest < 0x400) return as_float(sign | as_bits(static_cast<float>(rest) * 0x1p-24f));
  return as_float(sign | ((rest << 13) + 0x38000000));
}

inline float bfloat_to_float(uint16_t value) { return as_float(static_cast<uint32_t>(value) << 16); }

inline uint32_t round_to_bfloat(float value) { // to nearest, ties to even
  const uint32_t bits = as_bits(value);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline uint16_t float_to_bfloat(float value) { return static_cast<uint16_t>(round_to_bfloat(value)); }

typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

// Halves of 16 lanes combined again and again, down to one number.
template <typename Combine> inline float fold_lanes(const float *lanes, Combine combine) {
  Eight low, high;
  std::memcpy(&low, lanes, sizeof low);
  std::memcpy(&high, lanes + 8, sizeof high);
  const Eight eight = combine(low, high);
  const Four four = combine(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
  const Four two = combine(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  const Four one = combine(two, __builtin_shufflevector(two, two, 1, 1, 1, 1));
  return one[0];
}

#ifdef PLUGSERVE_AVX512
inline float sum_lanes(const float *lanes) { // in the order of the other version
  const __m512 all = _mm512_loadu_ps(lanes);
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float max_lanes(const float *lanes) { return _mm512_reduce_max_ps(_mm512_loadu_ps(lanes)); }
#else
inline float sum_lanes(const float *lanes) {
  return fold_lanes(lanes, [](auto one, auto other) { return one + other; });
}

inline float max_lanes(const float *lanes) {
  return fold_lanes(lanes, [](auto one, auto other) { return one > other ? one : other; });
}
#endif

// e^x within 2 units in the last place: 2^n times a polynomial (Cephes' expf) of what is left.
inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float n = std::fma(x, 1.44269504f, 12582912.0f) - 12582912.0f;
  const float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, x));
  float p = 1.9875691500e-4f;
  p = std::fma(p, r, 1.3981999507e-3f);
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  p = std::fma(p * r, r, r + 1.0f);
  return p * as_float((static_cast<uint32_t>(static_cast<int32_t>(n)) + 127) << 23);
}

inline float fast_tanh(float x) {
  const float e = fast_exp(-2.0f * std::fabs(x));
  return std::copysign((1.0f - e) / (1.0f + e), x);
}

} // namespace
} // namespace plugserve
