// Kernels that check the emulation: right ones, and the same with one fault each.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../../csrc/cuda/launch.cuh"

namespace checks {

using namespace stylekernels::device;

// Runs a kernel, and returns whether its results are right.
using Check = std::function<bool()>;

// By name. A fault follows the kernel's name and a slash.
inline std::map<std::string, Check>& all() {
  static std::map<std::string, Check> checks;
  return checks;
}

struct Registration {
  Registration(const std::string& name, const Check& check) { all()[name] = check; }
};

// Normal values, other ones for each seed.
inline std::vector<float> random(size_t count, unsigned seed = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(1.0f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

// False for NaN.
inline bool near(float got, double expected) {
  return std::fabs(got - expected) <= 1e-4 * (1 + std::fabs(expected));
}

inline double sum(const float* values, int count) {
  double total = 0;
  for (int i = 0; i < count; i++) total += values[i];
  return total;
}

}  // namespace checks
