// Tensor cores: products of matrices whose fragments are loaded from shared memory.

#include <algorithm>
#include <bit>
#include <cstring>

#include "checks.h"

namespace checks {

namespace {

using stylekernels::BFloat16;
using stylekernels::Float16;

enum class Fault {
  none,
  no_barrier,
  no_warp_barrier,
  divergent,
  two_operations,
  two_types,
  misaligned,
  outside,
  partly_outside,
  from_global,
};

// Ways to load fragments from shared memory: by single elements, by `load_matrices`, or by
// `load_matrices_transposed`.
enum class Source { elements, rows, transposed };

// -- layouts -----------------------------------------------------------------------------------

// Places of a lane's elements, in the form of the tables of the PTX manual ("Matrix Fragments").
struct Place {
  int row, column;
};

// mma.m16n8k16 of 16 bits: elements a0 to a7, b0 to b3, c0 to c3.
__device__ inline Place a_of_16_bits(int lane, int i) {
  const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {upper ? lane >> 2 : (lane >> 2) + 8,
          i < 4 ? (lane % 4) * 2 + (i & 1) : (lane % 4) * 2 + (i & 1) + 8};
}

__device__ inline Place b_of_16_bits(int lane, int i) {
  return {i < 2 ? (lane % 4) * 2 + (i & 1) : (lane % 4) * 2 + (i & 1) + 8, lane >> 2};
}

__device__ inline Place sum_of_float32(int lane, int i) {
  return {i < 2 ? lane >> 2 : (lane >> 2) + 8, (lane % 4) * 2 + (i & 1)};
}

// mma.m16n8k8 of tf32: elements a0 to a3, b0 and b1. The sums are those of mma.m16n8k16.
__device__ inline Place a_of_tf32(int lane, int i) {
  return {i == 0 || i == 2 ? lane >> 2 : (lane >> 2) + 8, i < 2 ? lane % 4 : lane % 4 + 4};
}

__device__ inline Place b_of_tf32(int lane, int i) {
  return {i == 0 ? lane % 4 : lane % 4 + 4, lane >> 2};
}

// mma.m8n8k4 of float64: one element each of a and b, and the sums c0 and c1.
__device__ inline Place a_of_float64(int lane) { return {lane >> 2, lane % 4}; }
__device__ inline Place b_of_float64(int lane) { return {lane % 4, lane >> 2}; }
__device__ inline Place sum_of_float64(int lane, int i) { return {lane >> 2, lane % 4 * 2 + i}; }

// -- 16 bits -----------------------------------------------------------------------------------

constexpr int kThreads = 128;
constexpr int kRows = kThreads / kWarp * 16, kInner = 48, kColumns = 16;

// y = a b. A warp computes 16 rows with all columns.
template <class T, Source kSource, Fault kFault>
__global__ void product(const T* a, const T* b, float* y) {
  T* own_a = reinterpret_cast<T*>(shared_memory());
  T* own_b = own_a + kRows * kInner;
  // Rows of a are contiguous, or its columns for transposed loads. Rows of b are contiguous, or its
  // columns for `load_matrices`.
  const auto at_a = [](int row, int inner) {
    return kSource == Source::transposed ? inner * kRows + row : row * kInner + inner;
  };
  const auto at_b = [](int inner, int column) {
    return kSource == Source::rows ? column * kInner + inner : inner * kColumns + column;
  };
  for (int i = thread_index(); i < kRows * kInner; i += kThreads)
    own_a[at_a(i / kInner, i % kInner)] = a[i];
  for (int i = thread_index(); i < kInner * kColumns; i += kThreads)
    own_b[at_b(i / kColumns, i % kColumns)] = b[i];
  if constexpr (kFault != Fault::no_barrier) block_barrier();

  const int lane = thread_index() % kWarp, first_row = thread_index() / kWarp * 16;
  const int matrix = lane / 8, of_matrix = lane % 8;
  float sums[2][4] = {};
  for (int first = 0; first < kInner; first += 16) {
    uint32_t of_a[4] = {}, of_b[2][2] = {};
    if constexpr (kSource == Source::elements) {
      for (int i = 0; i < 8; i++) {
        const Place place = a_of_16_bits(lane, i);
        of_a[i / 2] |= uint32_t(own_a[at_a(first_row + place.row, first + place.column)].bits)
                       << (i % 2 * 16);
      }
      for (int half = 0; half < 2; half++)
        for (int i = 0; i < 4; i++) {
          const Place place = b_of_16_bits(lane, i);
          of_b[half][i / 2] |=
              uint32_t(own_b[at_b(first + place.row, half * 8 + place.column)].bits)
              << (i % 2 * 16);
        }
    } else if constexpr (kSource == Source::rows) {
      const Vector16 loaded_a = load_matrices(
          own_a + at_a(first_row + matrix % 2 * 8 + of_matrix, first + matrix / 2 * 8));
      const Vector16 loaded_b =
          load_matrices(own_b + at_b(first + matrix % 2 * 8, matrix / 2 * 8 + of_matrix));
      for (int i = 0; i < 4; i++) of_a[i] = loaded_a.words[i];
      for (int i = 0; i < 4; i++) of_b[i / 2][i % 2] = loaded_b.words[i];
    } else {
      const Vector16 loaded_a = load_matrices_transposed(
          own_a + at_a(first_row + matrix % 2 * 8, first + matrix / 2 * 8 + of_matrix));
      const Vector16 loaded_b = load_matrices_transposed(
          own_b + at_b(first + matrix % 2 * 8 + of_matrix, matrix / 2 * 8));
      for (int i = 0; i < 4; i++) of_a[i] = loaded_a.words[i];
      for (int i = 0; i < 4; i++) of_b[i / 2][i % 2] = loaded_b.words[i];
    }
    if (kFault == Fault::divergent && lane == 9) return;
    for (int half = 0; half < 2; half++) {
      if (kFault == Fault::two_types && lane < 16)
        multiply<Float16>(sums[half], of_a, of_b[half]);
      else
        multiply<T>(sums[half], of_a, of_b[half]);
    }
  }
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 4; i++) {
      const Place place = sum_of_float32(lane, i);
      y[(first_row + place.row) * kColumns + half * 8 + place.column] = sums[half][i];
    }
}

// Compares y with the product a b. The error is relative to sums of absolute values.
template <class T, class Y>
bool is_product(const std::vector<Y>& y, const std::vector<T>& a, const std::vector<T>& b,
                int inner, int columns, double error) {
  bool right = true;
  for (size_t i = 0; i < y.size(); i++) {
    const size_t row = i / size_t(columns), column = i % size_t(columns);
    double expected = 0, absolute = 0;
    for (size_t k = 0; k < size_t(inner); k++) {
      const double one = double(a[row * size_t(inner) + k]) * b[k * size_t(columns) + column];
      expected += one;
      absolute += std::fabs(one);
    }
    right &= std::fabs(y[i] - expected) <= error * absolute;
  }
  return right;
}

template <class T, Source kSource, Fault kFault = Fault::none>
bool check_product() {
  std::vector<T> a(kRows * kInner), b(kInner * kColumns);
  std::vector<float> wide_a = random(a.size(), 1), wide_b = random(b.size(), 2);
  const auto round = [](std::vector<float>& wide, std::vector<T>& narrow) {
    for (size_t i = 0; i < wide.size(); i++) {
      round_to(wide[i], narrow[i]);
      wide[i] = widen(narrow[i]);
    }
  };
  round(wide_a, a);
  round(wide_b, b);
  std::vector<float> y(kRows * kColumns, NAN);
  launch({.blocks = 1, .threads = kThreads, .shared_bytes = int((a.size() + b.size()) * sizeof(T))},
         nullptr, product<T, kSource, kFault>, a.data(), b.data(), y.data());
  return is_product(y, wide_a, wide_b, kInner, kColumns, 1e-6);
}

// -- loads of matrices -------------------------------------------------------------------------

constexpr int kPitch = 40;  // elements between rows of the tile below

// A warp writes a tile of 16 x 16 elements, and loads its four matrices.
template <bool kTransposed, Fault kFault>
__global__ void load_tile(const uint16_t* x, uint32_t* y) {
  uint16_t* tile = reinterpret_cast<uint16_t*>(shared_memory());
  const int lane = thread_index();
  for (int i = lane; i < 16 * 16; i += kWarp) tile[i / 16 * kPitch + i % 16] = x[i];
  if constexpr (kFault != Fault::no_warp_barrier) warp_barrier();
  const void* row = tile + lane % 16 * kPitch + lane / 16 * 8;
  if (lane == 31) {
    if constexpr (kFault == Fault::misaligned) row = tile + 12;
    if constexpr (kFault == Fault::outside) row = tile + 16 * kPitch;
    if constexpr (kFault == Fault::partly_outside) row = tile + 16 * kPitch - 8;
    if constexpr (kFault == Fault::from_global) row = x;
  }
  if (kFault == Fault::divergent && lane == 9) return;
  const Vector16 loaded = kTransposed != (kFault == Fault::two_operations && lane < 16)
                              ? load_matrices_transposed(row)
                              : load_matrices(row);
  for (int matrix = 0; matrix < 4; matrix++) y[matrix * kWarp + lane] = loaded.words[matrix];
}

template <bool kTransposed, Fault kFault = Fault::none>
bool check_load_tile() {
  std::vector<uint16_t> x(16 * 16);
  for (size_t i = 0; i < x.size(); i++) x[i] = uint16_t(i * 251 + 7);
  std::vector<uint32_t> y(4 * kWarp, 0);
  const int bytes = 16 * kPitch * 2 - (kFault == Fault::partly_outside ? 8 : 0);
  launch({.blocks = 1, .threads = kWarp, .shared_bytes = bytes}, nullptr,
         load_tile<kTransposed, kFault>, x.data(), y.data());
  bool right = true;
  for (int matrix = 0; matrix < 4; matrix++)
    for (int row = 0; row < 8; row++)
      for (int column = 0; column < 8; column++) {
        // Four lanes have a row, or a column when transposed.
        const int major = kTransposed ? column : row, minor = kTransposed ? row : column;
        const uint32_t word = y[size_t(matrix * kWarp + major * 4 + minor / 2)];
        const uint16_t expected = x[size_t((matrix % 2 * 8 + row) * 16 + matrix / 2 * 8 + column)];
        right &= uint16_t(minor % 2 == 0 ? word : word >> 16) == expected;
      }
  return right;
}

// -- tf32 and float64 --------------------------------------------------------------------------

constexpr int kSmallInner = 24;

template <bool kRounded, Fault kFault>
__global__ void product_tf32(const float* a, const float* b, float* y) {
  const int lane = thread_index() % kWarp, first_row = thread_index() / kWarp * 16;
  const auto bits = [](float value) {
    return kRounded ? to_tf32(value) : std::bit_cast<uint32_t>(value);
  };
  float sums[4] = {};
  if (kFault == Fault::divergent && lane == 9) return;
  for (int first = 0; first < kSmallInner; first += 8) {
    uint32_t of_a[4], of_b[2];
    for (int i = 0; i < 4; i++) {
      const Place place = a_of_tf32(lane, i);
      of_a[i] = bits(a[(first_row + place.row) * kSmallInner + first + place.column]);
    }
    for (int i = 0; i < 2; i++) {
      const Place place = b_of_tf32(lane, i);
      of_b[i] = bits(b[(first + place.row) * 8 + place.column]);
    }
    multiply_tf32(sums, of_a, of_b);
  }
  for (int i = 0; i < 4; i++) {
    const Place place = sum_of_float32(lane, i);
    y[(first_row + place.row) * 8 + place.column] = sums[i];
  }
}

// The 11 bits of a tf32: rounded, or the other ones cut off.
float with_11_bits(float value, bool rounded) {
  int exponent;
  const double units = std::ldexp(std::frexp(value, &exponent), 11);
  return float(std::ldexp(rounded ? std::round(units) : std::trunc(units), exponent - 11));
}

template <bool kRounded, Fault kFault = Fault::none>
bool check_product_tf32() {
  std::vector<float> a = random(kRows * kSmallInner, 1), b = random(kSmallInner * 8, 2);
  std::vector<float> y(kRows * 8, NAN);
  launch({.blocks = 1, .threads = kThreads, .shared_bytes = 0}, nullptr,
         product_tf32<kRounded, kFault>, a.data(), b.data(), y.data());
  for (float& value : a) value = with_11_bits(value, kRounded);
  for (float& value : b) value = with_11_bits(value, kRounded);
  return is_product(y, a, b, kSmallInner, 8, 1e-6);
}

template <Fault kFault>
__global__ void product_float64(const double* a, const double* b, double* y) {
  const int lane = thread_index() % kWarp, first_row = thread_index() / kWarp * 8;
  double sums[2] = {};
  if (kFault == Fault::divergent && lane == 9) return;
  for (int first = 0; first < kSmallInner; first += 4) {
    const Place of_a = a_of_float64(lane), of_b = b_of_float64(lane);
    multiply_float64(sums, a[(first_row + of_a.row) * kSmallInner + first + of_a.column],
                     b[(first + of_b.row) * 8 + of_b.column]);
  }
  for (int i = 0; i < 2; i++) {
    const Place place = sum_of_float64(lane, i);
    y[(first_row + place.row) * 8 + place.column] = sums[i];
  }
}

template <Fault kFault = Fault::none>
bool check_product_float64() {
  const int rows = kThreads / kWarp * 8;
  const std::vector<float> floats = random(size_t(rows + 8) * kSmallInner);
  std::vector<double> a, b;  // with more digits than float32
  for (float value : floats) (a.size() < size_t(rows * kSmallInner) ? a : b).push_back(value / 3.0);
  std::vector<double> y(size_t(rows) * 8, NAN);
  launch({.blocks = 1, .threads = kThreads, .shared_bytes = 0}, nullptr, product_float64<kFault>,
         a.data(), b.data(), y.data());
  return is_product(y, a, b, kSmallInner, 8, 4e-15);
}

// -- rounding of sums --------------------------------------------------------------------------

// Adds to each sum `count` times the product of its first factors, the others being zero.
__global__ void add_products(float* sums, const BFloat16* factors, int count) {
  float own[4];
  const int lane = thread_index();
  for (int i = 0; i < 4; i++) own[i] = sums[lane * 4 + i];
  // Column 0 of a and row 0 of b are those of member 0.
  const bool first = lane % 4 == 0;
  const uint32_t a[4] = {first ? factors[0].bits : 0u, first ? factors[0].bits : 0u, 0, 0};
  const uint32_t b[2] = {first ? factors[1].bits : 0u, 0};
  for (int i = 0; i < count; i++) multiply<BFloat16>(own, a, b);
  for (int i = 0; i < 4; i++) sums[lane * 4 + i] = own[i];
}

// Bits of the sum after products were added to it.
uint32_t sum_with(float sum, float a, float b, int count = 1) {
  std::vector<float> sums(4 * kWarp, sum);
  BFloat16 factors[2];
  round_to(a, factors[0]);
  round_to(b, factors[1]);
  launch({.blocks = 1, .threads = kWarp, .shared_bytes = 0}, nullptr, add_products, sums.data(),
         factors, count);
  const uint32_t bits = std::bit_cast<uint32_t>(sums[0]);
  for (float value : sums)
    if (std::bit_cast<uint32_t>(value) != bits) return 0xFFFFFFFF;
  return bits;
}

bool check_sums_are_truncated() {
  const auto bits = [](float value) { return std::bit_cast<uint32_t>(value); };
  constexpr float kMost = 0x1.FFFFFEp127f;
  bool right = true;
  // Three quarters of a unit in the last place of 1, a hundred times.
  right &= sum_with(1, 1.5f, 0x1p-24f, 100) == bits(1);
  right &= sum_with(-1, -1.5f, 0x1p-24f, 100) == bits(-1);
  right &= sum_with(1, 1, 0x1p-23f, 100) == bits(1 + 100 * 0x1p-23f);
  right &= sum_with(1, -1, 0x1p-26f) == bits(1 - 0x1p-24f);
  right &= sum_with(0, 0x1p-75f, 0x1.8p-75f) == bits(0);
  right &= sum_with(0, 0x1p-75f, 0x1.8p-74f) == bits(0x1p-149f);
  // A sum of many values drifts down, here by 0.9 of 5317. Rounded to nearest it is 0.25 too high.
  const double exact = 5000 * (1 + 3 * 0x1p-7) * (1 + 5 * 0x1p-7);
  const float drifted = std::bit_cast<float>(sum_with(0, 1 + 3 * 0x1p-7f, 1 + 5 * 0x1p-7f, 5000));
  right &= exact - 2 < drifted && drifted < exact - 0.5;
  // The ends of float32.
  right &= sum_with(kMost, 0x1.8p102f, 1) == bits(kMost);
  right &= sum_with(kMost, 0x1p104f, 1) == bits(INFINITY);
  right &= sum_with(-INFINITY, 1, 1) == bits(-INFINITY);
  right &= sum_with(INFINITY, -INFINITY, 1) == 0x7FFFFFFF;
  right &= sum_with(-NAN, 1, 1) == 0x7FFFFFFF;
  return right;
}

const Registration registrations[] = {
    {"product",
     [] {
       return check_product<BFloat16, Source::elements>() &&
              check_product<BFloat16, Source::rows>() &&
              check_product<BFloat16, Source::transposed>() &&
              check_product<Float16, Source::elements>() &&
              check_product<Float16, Source::rows>() &&
              check_product<Float16, Source::transposed>();
     }},
    {"product/no_barrier", check_product<BFloat16, Source::rows, Fault::no_barrier>},
    {"product/no_barrier_transposed",
     check_product<Float16, Source::transposed, Fault::no_barrier>},
    {"product/divergent", check_product<BFloat16, Source::elements, Fault::divergent>},
    {"product/two_types", check_product<BFloat16, Source::elements, Fault::two_types>},
    {"load_tile", [] { return check_load_tile<false>() && check_load_tile<true>(); }},
    {"load_tile/no_warp_barrier", check_load_tile<false, Fault::no_warp_barrier>},
    {"load_tile/divergent", check_load_tile<true, Fault::divergent>},
    {"load_tile/two_operations", check_load_tile<false, Fault::two_operations>},
    {"load_tile/misaligned", check_load_tile<false, Fault::misaligned>},
    {"load_tile/outside", check_load_tile<true, Fault::outside>},
    {"load_tile/partly_outside", check_load_tile<false, Fault::partly_outside>},
    {"load_tile/from_global", check_load_tile<true, Fault::from_global>},
    {"product_tf32", [] { return check_product_tf32<true>() && check_product_tf32<false>(); }},
    {"product_tf32/divergent", check_product_tf32<true, Fault::divergent>},
    {"product_float64", check_product_float64<Fault::none>},
    {"product_float64/divergent", check_product_float64<Fault::divergent>},
    {"sums_are_truncated", check_sums_are_truncated},
};

}  // namespace

}  // namespace checks
