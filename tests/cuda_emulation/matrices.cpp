#include "matrices.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "conversions.h"
#include "warps.h"

namespace stylekernels::device::emulation {

namespace {

constexpr int kRows = 16, kColumns = 8;  // of a product with float32 sums

// A lane's place in fragments: four lanes of a group share a row or a column.
int group_of(int lane) { return lane / 4; }
int member_of(int lane) { return lane % 4; }

// -- loads -------------------------------------------------------------------------------------

struct Loaded {
  uint16_t row[8];
  Vector16 words;
};

uint32_t pair(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }

void check_row(Thread& thread, const void* row) {
  const SharedMemory& memory = thread.block->memory;
  const auto fail = [&](const char* expected) {
    thread.grid->fail(
        thread, "loads a row of a matrix from " + memory.place(row) + "; expected " + expected);
  };
  if (!memory.contains(row, 16)) fail("16 bytes of its block's shared memory");
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a multiple of 16");
}

template <class F>
Vector16 load(State operation, const void* row, const F& word_of) {
  Thread& thread = self();
  check_row(thread, row);
  Loaded own;
  std::memcpy(own.row, row, 16);
  meet(thread, operation, own, [&](Loaded* const* lanes) {
    for (int lane = 0; lane < kWarp; lane++)
      for (int matrix = 0; matrix < 4; matrix++)
        lanes[lane]->words.words[matrix] = word_of(lanes + 8 * matrix, lane);
  });
  return own.words;
}

// -- products ----------------------------------------------------------------------------------

struct Factors {
  float* sums;
  const uint32_t* a;
  const uint32_t* b;
};

// Operands of a product, as matrices.
template <int kInner>
struct Matrices {
  double a[kRows][kInner];
  double b[kInner][kColumns];
};

template <int kInner>
void multiply(const Matrices<kInner>& matrices, Factors* const* lanes) {
  double sums[kRows][kColumns];
  const auto each_sum = [&](const auto& f) {
    for (int lane = 0; lane < kWarp; lane++)
      for (int i = 0; i < 4; i++)
        f(lanes[lane]->sums[i], sums[group_of(lane) + i / 2 * 8][member_of(lane) * 2 + i % 2]);
  };
  each_sum([](float from, double& to) { to = from; });
  for (int row = 0; row < kRows; row++)
    for (int inner = 0; inner < kInner; inner++)
      for (int column = 0; column < kColumns; column++)
        sums[row][column] += matrices.a[row][inner] * matrices.b[inner][column];
  each_sum([](float& to, double from) { to = truncated(from); });
}

template <class T>
void multiply_16_bits(State operation, Factors own) {
  meet(self(), operation, own, [](Factors* const* lanes) {
    Matrices<16> matrices;
    for (int lane = 0; lane < kWarp; lane++) {
      const int group = group_of(lane), member = member_of(lane);
      const auto element = [](uint32_t word, int half) {
        return widened(T{uint16_t(half == 0 ? word : word >> 16)});
      };
      for (int half = 0; half < 2; half++) {
        for (int i = 0; i < 4; i++)
          matrices.a[group + i % 2 * 8][member * 2 + i / 2 * 8 + half] =
              element(lanes[lane]->a[i], half);
        for (int i = 0; i < 2; i++)
          matrices.b[member * 2 + i * 8 + half][group] = element(lanes[lane]->b[i], half);
      }
    }
    multiply(matrices, lanes);
  });
}

}  // namespace

Vector16 load_matrices(const void* row) {
  return load(State::load_matrices, row, [](Loaded* const* rows, int lane) {
    const uint16_t* elements = rows[group_of(lane)]->row + member_of(lane) * 2;
    return pair(elements[0], elements[1]);
  });
}

Vector16 load_matrices_transposed(const void* row) {
  return load(State::load_matrices_transposed, row, [](Loaded* const* rows, int lane) {
    Loaded* const* two = rows + member_of(lane) * 2;
    return pair(two[0]->row[group_of(lane)], two[1]->row[group_of(lane)]);
  });
}

void multiply_bfloat16(float* sums, const uint32_t* a, const uint32_t* b) {
  multiply_16_bits<BFloat16>(State::multiply_bfloat16, {sums, a, b});
}

void multiply_float16(float* sums, const uint32_t* a, const uint32_t* b) {
  multiply_16_bits<Float16>(State::multiply_float16, {sums, a, b});
}

void multiply_tf32(float* sums, const uint32_t* a, const uint32_t* b) {
  Factors own{sums, a, b};
  meet(self(), State::multiply_tf32, own, [](Factors* const* lanes) {
    Matrices<8> matrices;
    for (int lane = 0; lane < kWarp; lane++) {
      const int group = group_of(lane), member = member_of(lane);
      const auto element = [](uint32_t bits) { return std::bit_cast<float>(bits & ~kBelowTf32); };
      for (int i = 0; i < 4; i++)
        matrices.a[group + i % 2 * 8][member + i / 2 * 4] = element(lanes[lane]->a[i]);
      for (int i = 0; i < 2; i++) matrices.b[member + i * 4][group] = element(lanes[lane]->b[i]);
    }
    multiply(matrices, lanes);
  });
}

void multiply_float64(double* sums, double a, double b) {
  struct Doubles {
    double* sums;
    double a, b;
  } own{sums, a, b};
  meet(self(), State::multiply_float64, own, [](Doubles* const* lanes) {
    for (int lane = 0; lane < kWarp; lane++)
      for (int i = 0; i < 2; i++)
        for (int inner = 0; inner < 4; inner++) {
          const double left = lanes[group_of(lane) * 4 + inner]->a;
          const double right = lanes[(member_of(lane) * 2 + i) * 4 + inner]->b;
          lanes[lane]->sums[i] = std::fma(left, right, lanes[lane]->sums[i]);
        }
  });
}

}  // namespace stylekernels::device::emulation
