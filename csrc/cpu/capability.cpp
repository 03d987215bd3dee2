#include "capability.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace stylekernels {
namespace {

constexpr const char* kVariable = "STYLEKERNELS_CPU_CAPABILITY";

#if defined(__x86_64__)

constexpr bool has_bits(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

constexpr uint32_t bit(int index) { return uint32_t{1} << index; }

// Features of the CPU whose registers the operating system saves as well (XCR0).
struct Features {
  bool avx2 = false;
  bool avx512 = false;
  bool avx512_bf16 = false;
  bool amx = false;

  Features() {
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx)) return;
    constexpr uint32_t kFma = bit(12), kOsxsave = bit(27), kAvx = bit(28), kF16c = bit(29);
    if (!has_bits(ecx, kFma | kOsxsave | kAvx | kF16c)) return;

    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const uint64_t saved = (uint64_t{high} << 32) | low;
    constexpr uint64_t kYmm = 0x6, kZmm = 0xe0, kTiles = 0x60000;
    if (!has_bits(saved, kYmm)) return;

    uint32_t leaf7_ebx, leaf7_edx;
    if (!__get_cpuid_count(7, 0, &eax, &leaf7_ebx, &ecx, &leaf7_edx)) return;
    avx2 = has_bits(leaf7_ebx, bit(5));
    if (!has_bits(saved, kYmm | kZmm)) return;
    constexpr uint32_t kF = bit(16), kDq = bit(17), kBw = bit(30), kVl = bit(31);
    avx512 = avx2 && has_bits(leaf7_ebx, kF | kDq | kBw | kVl);

    constexpr uint32_t kAvx512Bf16 = bit(5);
    avx512_bf16 = avx512 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
                  has_bits(eax, kAvx512Bf16);

    constexpr uint32_t kAmxBf16 = bit(22), kAmxTile = bit(24);
    amx = avx512_bf16 && has_bits(saved, kTiles) && has_bits(leaf7_edx, kAmxBf16 | kAmxTile) &&
          tiles_permitted();
  }

  // Asks Linux for the tile registers: 8 KiB more in the saved state of every thread.
  static bool tiles_permitted() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }
};

bool runs(Capability capability) {
  static const Features features;
  switch (capability) {
    case Capability::baseline:
      return true;
    case Capability::avx2:
      return features.avx2;
    case Capability::avx512:
      return features.avx512;
    case Capability::avx512_bf16:
      return features.avx512_bf16;
    case Capability::amx:
      return features.amx;
    case Capability::amx_emulated:
      return features.avx2;
    case Capability::amx_emulated_avx512:
      return features.avx512_bf16;
  }
  return false;
}

#else

bool runs(Capability capability) { return capability == Capability::baseline; }

#endif

bool emulated(Capability capability) {
  return capability == Capability::amx_emulated || capability == Capability::amx_emulated_avx512;
}

Capability choose() {
  const std::vector<Capability> choices = supported();
  const char* requested = std::getenv(kVariable);
  if (requested != nullptr && *requested != '\0') {
    std::string names;
    for (const Capability choice : choices) {
      if (std::string(requested) == name(choice)) return choice;
      if (!names.empty()) names += ", ";
      names += name(choice);
    }
    throw std::runtime_error(std::string(kVariable) + ": expected one of " + names +
                             " (what was compiled and this CPU runs), got '" + requested + "'");
  }
  Capability best = Capability::baseline;
  for (const Capability choice : choices) {
    if (!emulated(choice)) best = choice;
  }
  return best;
}

}  // namespace

const char* name(Capability capability) {
  switch (capability) {
    case Capability::baseline:
      return "baseline";
    case Capability::avx2:
      return "avx2";
    case Capability::avx512:
      return "avx512";
    case Capability::avx512_bf16:
      return "avx512_bf16";
    case Capability::amx:
      return "amx";
    case Capability::amx_emulated:
      return "amx_emulated";
    case Capability::amx_emulated_avx512:
      return "amx_emulated_avx512";
  }
  return "unknown";
}

std::vector<Capability> compiled() {
  return {
      Capability::baseline,
#ifdef HAVE_AVX2
      Capability::avx2,
#endif
#ifdef HAVE_AVX512
      Capability::avx512,
#endif
#ifdef HAVE_AVX512_BF16
      Capability::avx512_bf16,
#endif
#ifdef HAVE_AMX
      Capability::amx,
#endif
#ifdef HAVE_AMX_EMULATED
      Capability::amx_emulated,
#endif
#ifdef HAVE_AMX_EMULATED_AVX512
      Capability::amx_emulated_avx512,
#endif
  };
}

std::vector<Capability> supported() {
  std::vector<Capability> result;
  for (const Capability capability : compiled()) {
    if (runs(capability)) result.push_back(capability);
  }
  return result;
}

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

}  // namespace stylekernels
