// The most multiply-adds this machine's cores can do: accumulators in registers, operands in
// registers, nothing else to wait for. Compiled for the machine it runs on by ceilings.py.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__AVX512BF16__) || (defined(__AMX_TILE__) && defined(__AMX_BF16__))
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

// Twelve chains cover two pipes of latency up to six, and leave registers for the operands.
constexpr int kChains = 12;
constexpr long kSteps = 100000;  // about 0.2 ms: many of them fit between two looks at the clock

// Volatile, so the compiler can neither merge equal chains nor drop unused results.
volatile float zero = 0;

// Every kernel runs kSteps steps and returns the floating-point operations it did.
double float32_steps() {
  Vector sums[kChains] = {};
  for (Vector& sum : sums) sum += zero;
  Vector a = {}, b = {};
  a += 0.999f + zero;
  b += 0.001f + zero;
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = sums[chain] * a + b;
  }
  Vector total = {};
  for (const Vector& sum : sums) total += sum;
  zero = total[0] * 0;
  return 2.0 * (kBytes / sizeof(float)) * kChains * kSteps;
}

#if defined(__AVX512BF16__)
double avx512_bfloat16_steps() {
  __m512 sums[kChains];
  const __m512 ones = _mm512_set1_ps(1.0f + zero);
  const __m512bh a = _mm512_cvtne2ps_pbh(ones, ones);
  for (__m512& sum : sums) sum = _mm512_set1_ps(zero);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = _mm512_dpbf16_ps(sums[chain], a, a);
  }
  __m512 total = _mm512_setzero_ps();
  for (const __m512& sum : sums) total = _mm512_add_ps(total, sum);
  zero = _mm512_cvtss_f32(total) * 0;
  return 2.0 * 32 * kChains * kSteps;
}
#endif

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
// Asks the kernel for the right to use tiles; a process has to, once.
bool tiles_allowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct alignas(64) TileConfig {
  unsigned char palette = 1, start_row = 0, reserved[14] = {};
  unsigned short bytes_per_row[16] = {};
  unsigned char rows[16] = {};
};

double amx_bfloat16_steps() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes_per_row[tile] = 64;
    config.rows[tile] = 16;
  }
  // gcc's own intrinsic declares only the first eight bytes as read.
  asm volatile("ldtilecfg %0" ::"m"(config));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (long step = 0; step < kSteps / 16; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 2.0 * 16 * 16 * 32 * 4 * (kSteps / 16);
}
#endif

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Gives this thread a CPU of its own: new threads may share one for longer than they live, and
// inherit from their parent what it is bound to. This ignores a taskset: all CPUs count.
void take_cpu([[maybe_unused]] int index) {
#if defined(__linux__)
  cpu_set_t allowed, own;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) CPU_SET(cpu, &allowed);
  if (sched_setaffinity(0, sizeof(allowed), &allowed) !=
          0 ||  // the kernel keeps only existing CPUs
      sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
    return;
  CPU_ZERO(&own);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || index-- > 0) continue;
    CPU_SET(cpu, &own);
    sched_setaffinity(0, sizeof(own), &own);
    return;
  }
#endif
}

// Floating-point operations per second of all threads together, the best of several attempts.
double best_rate(double (*steps)(), int threads, double seconds, int attempts) {
  double best = 0;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    std::vector<double> rates(threads);
    std::vector<std::thread> team;
    for (int index = 0; index < threads; ++index) {
      team.emplace_back([&rates, index, steps, seconds] {
        take_cpu(index);
        steps();  // wakes the core and its wide units
        double operations = 0;
        const auto start = std::chrono::steady_clock::now();
        do operations += steps();
        while (seconds_since(start) < seconds);
        rates[index] = operations / seconds_since(start);
      });
    }
    for (std::thread& thread : team) thread.join();
    double total = 0;
    for (double rate : rates) total += rate;
    best = std::max(best, total);
  }
  return best;
}

}  // namespace

extern "C" double peak_float32(int threads, double seconds, int attempts) {
  return best_rate(float32_steps, threads, seconds, attempts);
}

// The instructions that multiply bfloat16 here; an empty name where there are none.
extern "C" const char* bfloat16_instructions() {
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
  if (tiles_allowed()) return "AMX";
#endif
#if defined(__AVX512BF16__)
  return "AVX512-BF16";
#else
  return "";
#endif
}

// 0 where no instruction multiplies bfloat16.
extern "C" double peak_bfloat16(int threads, double seconds, int attempts) {
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
  if (tiles_allowed()) return best_rate(amx_bfloat16_steps, threads, seconds, attempts);
#endif
#if defined(__AVX512BF16__)
  return best_rate(avx512_bfloat16_steps, threads, seconds, attempts);
#else
  static_cast<void>(threads), static_cast<void>(seconds), static_cast<void>(attempts);
  return 0;
#endif
}
