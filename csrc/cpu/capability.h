// CPU capabilities: the instruction sets that kernels are compiled for, and the one in use.

#pragma once

#include <vector>

namespace stylekernels {

// Every kernel file is compiled once per capability; HAVE_* macros say which were compiled.
enum class Capability {
  baseline,     // portable C++, without flags for a machine
  avx2,         // AVX2, FMA and F16C
  avx512,       // F, BW, DQ and VL: Skylake servers and later
  avx512_bf16,  // avx512, and bfloat16 products and rounding: Cooper Lake, Zen 4 and later
  amx,          // avx512_bf16, and AMX tiles of bfloat16
  // Code for AMX over tiles in memory, to test it without AMX; never chosen.
  amx_emulated,         // with the instructions of avx2
  amx_emulated_avx512,  // with those of avx512_bf16: all that amx runs but the tile instructions
};

const char* name(Capability capability);

// Lists the capabilities that were compiled, whatever this CPU is.
std::vector<Capability> compiled();

// Lists the compiled ones that this CPU and operating system run, worst first; baseline is always
// there.
std::vector<Capability> supported();

// Returns the capability in use: the best supported, or the one that STYLEKERNELS_CPU_CAPABILITY
// names. The first call decides for the whole process. Throws std::runtime_error if the variable
// names none of supported().
Capability capability();

}  // namespace stylekernels
