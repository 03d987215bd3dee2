// stylekernels._C: build information and CPU features, nothing about tensors.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/capability.h"

namespace py = pybind11;

namespace {

std::vector<std::string> names(const std::vector<stylekernels::Capability>& capabilities) {
  std::vector<std::string> result;
  for (const auto capability : capabilities) {
    result.emplace_back(stylekernels::name(capability));
  }
  return result;
}

py::dict build_info() {
  using py::literals::operator""_a;
  return py::dict("compiler"_a = BUILD_COMPILER, "flags"_a = BUILD_FLAGS,
                  "torch"_a = BUILD_TORCH_VERSION, "stable_abi"_a = BUILD_STABLE_ABI,
                  "capabilities"_a = names(stylekernels::compiled()));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information and CPU features.";

  module.def("build_info", build_info,
             "How the native code was built: compiler, flags, the torch whose headers were used, "
             "the oldest torch it loads into, and the CPU capabilities compiled.");

  module.def(
      "cpu_capabilities", [] { return names(stylekernels::supported()); },
      "The capabilities that were compiled and this CPU runs, worst first.");

  module.def(
      "cpu_capability", [] { return std::string(stylekernels::name(stylekernels::capability())); },
      "The capability in use. Raises RuntimeError if STYLEKERNELS_CPU_CAPABILITY names one that "
      "this build or this CPU does not have.");
}
