// Which instructions the CPU kernels use in this process.

#pragma once

#include <vector>

namespace stylekernels {

// Every kernel file is compiled once per capability; HAVE_* macros say which were compiled.
enum class Capability {
  baseline,      // what the compiler assumes of the architecture; portable C++
  avx2,          // with FMA and F16C
  avx512,        // F, BW, DQ and VL: Skylake servers and later
  avx512_bf16,   // avx512 and its products and rounding of bfloat16: Cooper Lake, Zen 4 and later
  amx,           // avx512_bf16 and bfloat16 tiles
  amx_emulated,  // AMX's code on software tiles, to test it where there is no AMX; never chosen
};

const char* name(Capability capability);

// Those that were compiled, whatever this CPU is.
std::vector<Capability> compiled();

// Those of them that this CPU and operating system run, worst first; baseline is always there.
std::vector<Capability> supported();

// The one in use: the best supported, or what STYLEKERNELS_CPU_CAPABILITY names. The first call
// decides for the whole process. Throws std::runtime_error if the variable names none of
// supported().
Capability capability();

}  // namespace stylekernels
