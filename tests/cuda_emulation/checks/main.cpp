// Usage: checks NAME [SEED ...]      runs a check once for each seed, a line of output each
//        checks convert < floats     writes their conversions to and from 16 bits, and to tf32

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "checks.h"

namespace {

void convert() {
  struct Result {
    stylekernels::BFloat16 bfloat16;
    stylekernels::Float16 float16;
    float from_bfloat16, from_float16;
    uint32_t tf32;
  };
  float value;
  while (std::fread(&value, sizeof(value), 1, stdin) == 1) {
    Result result;
    stylekernels::device::round_to(value, result.bfloat16);
    stylekernels::device::round_to(value, result.float16);
    result.from_bfloat16 = stylekernels::device::widen(result.bfloat16);
    result.from_float16 = stylekernels::device::widen(result.float16);
    result.tf32 = stylekernels::device::to_tf32(value);
    std::fwrite(&result, sizeof(result), 1, stdout);
  }
}

void run(const checks::Check& check) {
  try {
    std::puts(check() ? "right" : "wrong");
  } catch (const std::exception& error) {
    std::printf("threw %s\n", error.what());
  }
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) return 2;
  if (std::strcmp(arguments[1], "convert") == 0) {
    convert();
    return 0;
  }
  const auto check = checks::all().find(arguments[1]);
  if (check == checks::all().end()) {
    std::fprintf(stderr, "no check named %s\n", arguments[1]);
    return 2;
  }
  if (count == 2) run(check->second);
  for (int i = 2; i < count; i++) {
    setenv("CUDA_EMULATION_SEED", arguments[i], 1);
    run(check->second);
  }
  return 0;
}
