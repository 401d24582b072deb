// _emulated_cuda: the CUDA operators on the host, for tests, as torch.ops.ftengine_emulated; whoever imports this
// module defines their schemas. The functions below steer the emulator.

// torch 2.10 refuses its copy of pybind11 where only the stable ABI is asked for, as the operators do.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include "cuda/launch.cu"
#include "cuda/ops.cu"
#include "faults.h"

PYBIND11_MODULE(_emulated_cuda, module) {
  module.doc() = "Steers the emulator of the CUDA kernels.";
  module.def(
      "use_order", [](uint64_t order) { ftengine::runtime::order = order; },
      "Choose the random order in which blocks and threads run.");
  module.def(
      "use_multiprocessors", [](int count) { ftengine::device::emulated::multiprocessors = count; },
      "Choose how many blocks the emulated device holds at once.");
  module.def("launches", [] { return ftengine::device::emulated::launches; }, "How many there were so far.");
  module.def("run_fault", &ftengine::run_fault, "Run a small kernel that is wrong by name; what it computed.");
#ifdef __SANITIZE_ADDRESS__
  module.attr("sanitized") = true;
#else
  module.attr("sanitized") = false;
#endif
}
