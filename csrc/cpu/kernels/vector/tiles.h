// AMX tiles: eight registers of 16 rows of 64 bytes, and the product of two of them.
//
// The capability amx has them in hardware. amx_emulated and amx_emulated_avx512 run the same
// kernels on tiles in memory: slow, but they test the kernels' arithmetic on any machine.
#pragma once

#include "pairs.h"

#define CAPABILITY_amx 1
#define CAPABILITY_amx_emulated 2
#define CAPABILITY_amx_emulated_avx512 2
#define JOIN(a, b) a##b
#define CAPABILITY(name) JOIN(CAPABILITY_, name)
#if CAPABILITY(CPU_CAPABILITY)
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;      // a row
constexpr int64_t kTileDepth = 32;  // bfloat16 values of a row, the terms of a tile product
constexpr int64_t kTilePanel = 32;  // columns of a panel: two tiles
constexpr int64_t kTileElements = kTileRows * kTileDepth;

#if CAPABILITY(CPU_CAPABILITY) == CAPABILITY_amx

// Tile registers belong to a thread, and other libraries configure them differently: load the
// configuration in every task. The instructions are inline assembly: gcc 12's intrinsics tell the
// compiler less about memory than the instructions do, and take no template argument as a tile's
// number.
struct TileScope {
  TileScope() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~TileScope() { asm volatile("tilerelease"); }
};

template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// `pitch_bytes`: from one row of the tile to the next in memory.
template <int kTile>
inline void tile_load(const void* p, int64_t pitch_bytes = kTileBytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(pitch_bytes), "i"(kTile) : "memory");
}

template <int kTile>
inline void tile_store(void* p, int64_t pitch_bytes = kTileBytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(pitch_bytes), "i"(kTile) : "memory");
}

// Computes sum[i][j] += sum_k a[i][2k] b[k][2j] + a[i][2k + 1] b[k][2j + 1], a and b in bfloat16.
template <int kSum, int kA, int kB>
inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}

#else

struct TileScope {};

// One definition for all files: the linker takes an inline function from any of them.
inline constinit thread_local float tile_memory[8][kTileRows][kTileBytes / 4];

template <int kTile>
inline void tile_zero() {
  std::memset(tile_memory[kTile], 0, sizeof(tile_memory[kTile]));
}

template <int kTile>
inline void tile_load(const void* p, int64_t pitch_bytes = kTileBytes) {
  for (int i = 0; i < kTileRows; ++i)
    std::memcpy(tile_memory[kTile][i], static_cast<const char*>(p) + i * pitch_bytes, kTileBytes);
}

template <int kTile>
inline void tile_store(void* p, int64_t pitch_bytes = kTileBytes) {
  for (int i = 0; i < kTileRows; ++i)
    std::memcpy(static_cast<char*>(p) + i * pitch_bytes, tile_memory[kTile][i], kTileBytes);
}

template <int kSum, int kA, int kB>
inline void tile_multiply() {
  constexpr int kVectors = 16 / kLanes<VecF>;
  BFloat16 a[kTileRows][32], b[kTileRows][32];
  std::memcpy(a, tile_memory[kA], sizeof(a));
  std::memcpy(b, tile_memory[kB], sizeof(b));
  for (int i = 0; i < kTileRows; ++i) {
    VecF sums[kVectors];
    for (int v = 0; v < kVectors; ++v)
      sums[v] = load<VecF>(&tile_memory[kSum][i][v * kLanes<VecF>]);
    for (int k = 0; k < 16; ++k) {
      const VecF even = splat<VecF>(widen(a[i][2 * k])), odd = splat<VecF>(widen(a[i][2 * k + 1]));
      for (int v = 0; v < kVectors; ++v) {
        const Pair<VecF> column = load_pair(b[k] + v * kPairLanes<VecF>);
        sums[v] += even * column.a + odd * column.b;
      }
    }
    for (int v = 0; v < kVectors; ++v) store(&tile_memory[kSum][i][v * kLanes<VecF>], sums[v]);
  }
}

#endif

}  // namespace stylekernels::CPU_CAPABILITY
#endif
