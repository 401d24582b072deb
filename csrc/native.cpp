// ftengine._native: what the processor offers, and which instruction set the CPU kernels use. Linked to no torch, so
// that `ftengine doctor` has its answers where torch is broken.

#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

// What the instruction sets of csrc/cpu ask for, and whether processor and operating system both offer it.
std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define FTENGINE_FEATURE(name) features[name] = __builtin_cpu_supports(name) != 0
  FTENGINE_FEATURE("avx2");
  FTENGINE_FEATURE("fma");
  FTENGINE_FEATURE("avx512f");
  FTENGINE_FEATURE("avx512bw");
  FTENGINE_FEATURE("avx512vl");
  FTENGINE_FEATURE("avx512dq");
  FTENGINE_FEATURE("avx512cd");
#ifdef FTENGINE_HAVE_AVX512BF16  // a compiler without the instructions does not know their name either
  FTENGINE_FEATURE("avx512bf16");
#endif
#undef FTENGINE_FEATURE
#endif
  return features;
}

// A function of a library that this process has loaded already; a second copy would have a choice of its own.
template <class Function>
Function* function_of(const std::string& library, const char* name) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (handle == nullptr) throw std::runtime_error(library + " is not loaded; import ftengine.ops first");
  void* function = dlsym(handle, name);
  dlclose(handle);  // gives back what RTLD_NOLOAD counted; the library stays
  if (function == nullptr) throw std::runtime_error(library + " has no function " + name + "; reinstall ftengine");
  return reinterpret_cast<Function*>(function);
}

std::string instruction_set(const std::string& library) {
  return function_of<const char*()>(library, "ftengine_instruction_set")();
}

std::string instruction_sets(const std::string& library) {
  return function_of<const char*()>(library, "ftengine_instruction_sets")();
}

int64_t onednn_from(const std::string& library) { return function_of<int64_t()>(library, "ftengine_onednn_from")(); }

void use_onednn(const std::string& library, int64_t least) {
  function_of<void(int64_t)>(library, "ftengine_use_onednn")(least);
}

bool is_intel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

void use_instruction_set(const std::string& library, const std::string& name) {
  if (function_of<int(const char*)>(library, "ftengine_use_instruction_set")(name.c_str()) != 0) {
    throw py::value_error("instruction set '" + name + "': this build and processor have auto," +
                          instruction_sets(library));
  }
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "What the processor offers, and which instruction set is used.";
  m.def("cpu_features", &cpu_features);
  m.def("instruction_set", &instruction_set, py::arg("library"));
  m.def("instruction_sets", &instruction_sets, py::arg("library"));
  m.def("onednn_from", &onednn_from, py::arg("library"));
  m.def("use_onednn", &use_onednn, py::arg("library"), py::arg("least"));
  m.def("is_intel", &is_intel);
  m.def("use_instruction_set", &use_instruction_set, py::arg("library"), py::arg("name"));
}
