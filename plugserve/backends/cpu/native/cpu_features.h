// The instruction sets of this CPU that the library has code for.
#pragma once

namespace plugserve {

// 0: any CPU; 1: AVX2, FMA and F16C; 2: AVX-512 (F, BW, VL, DQ) with byte products (VNNI); 3: AMX (int8, bf16) and
// AVX-512's bfloat16 too, and the system lets this process use its tiles.
int best_level();

} // namespace plugserve
