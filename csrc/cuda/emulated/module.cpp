// _emulated_cuda: the CUDA kernels and their launches on the host, for tests. No torch: matrices come as addresses.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../launch.cu"
#include "faults.h"

namespace ftengine {
namespace {

// Address, type ("float32", …), rows, columns, row stride, column stride; strides in elements, not negative.
using Operand = std::tuple<uintptr_t, std::string, int64_t, int64_t, int64_t, int64_t>;

// A block of memory of its own, exactly as large as asked for, so that AddressSanitizer sees what lies outside. It is
// full of NaN in every type.
class Memory {
 public:
  explicit Memory(size_t bytes, size_t offset = 0) : bytes_(new uint8_t[offset + bytes]), offset_(offset) {
    std::memset(bytes_.get(), 0xFF, offset + bytes);
  }
  void* data() const { return bytes_.get() + offset_; }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
  size_t offset_;
};

// One call: operands are copied in, and those to write are copied back.
class Call {
 public:
  explicit Call(uint64_t order)
      : context_{[this](size_t bytes) { return memory_.emplace_back(bytes).data(); }, {order}} {}

  Matrix read(const Operand& operand) {
    const auto& [address, type, rows, columns, row_stride, column_stride] = operand;
    static const std::map<std::string, std::pair<Type, size_t>> kTypes = {
        {"float32", {Type::kFloat, 4}},
        {"bfloat16", {Type::kBFloat16, 2}},
        {"float16", {Type::kHalf, 2}},
        {"float64", {Type::kDouble, 8}},
    };
    const auto [code, bytes] = kTypes.at(type);
    const bool empty = rows == 0 || columns == 0;
    const size_t span = empty ? 0 : ((rows - 1) * row_stride + (columns - 1) * column_stride + 1) * bytes;
    void* copy = memory_.emplace_back(span, address % 16).data();  // as well or badly aligned as the original
    if (span > 0) std::memcpy(copy, reinterpret_cast<const void*>(address), span);
    spans_.push_back({reinterpret_cast<void*>(address), copy, span});
    return {copy, code, rows, columns, row_stride, column_stride};
  }
  Matrix write(const Operand& operand) {
    const Matrix matrix = read(operand);
    written_.push_back(spans_.back());
    return matrix;
  }
  const int64_t* seed(const std::optional<int64_t>& seed) {
    if (!seed) return nullptr;
    return static_cast<int64_t*>(std::memcpy(memory_.emplace_back(sizeof *seed).data(), &*seed, sizeof *seed));
  }
  const Context& context() const { return context_; }
  void copy_back() const {
    for (const Span& span : written_) {
      if (span.bytes > 0) std::memcpy(span.original, span.copy, span.bytes);
    }
  }

 private:
  struct Span {
    void *original, *copy;
    size_t bytes;
  };
  std::vector<Memory> memory_;
  std::vector<Span> spans_, written_;
  Context context_;
};

void shrink(uint64_t order, const Operand& s, const Operand& x, const Operand& a, int level,
            std::optional<int64_t> seed) {
  Call call(order);
  launch_lowrank_shrink(call.context(), call.write(s), call.read(x), call.read(a), level, call.seed(seed));
  call.copy_back();
}

void expand(uint64_t order, const Operand& y, const Operand& s, const Operand& b, float scale) {
  Call call(order);
  launch_lowrank_expand(call.context(), call.write(y), call.read(s), call.read(b), scale);
  call.copy_back();
}

void backward_output(uint64_t order, const Operand& ds, const Operand& db, const Operand& dy, const Operand& s,
                     const Operand& b, float scale) {
  Call call(order);
  launch_lowrank_backward_output(call.context(), call.write(ds), call.write(db), call.read(dy), call.read(s),
                                 call.read(b), scale);
  call.copy_back();
}

void backward_input(uint64_t order, const Operand& da, const std::optional<Operand>& dx, const Operand& x,
                    const Operand& ds, const Operand& a, int level, std::optional<int64_t> seed) {
  Call call(order);
  const Matrix updated = dx ? call.write(*dx) : Matrix{};
  launch_lowrank_backward_input(call.context(), call.write(da), updated, call.read(x), call.read(ds), call.read(a),
                                level, call.seed(seed));
  call.copy_back();
}

void merge(uint64_t order, const Operand& w, const Operand& a, const Operand& b, float scale) {
  Call call(order);
  launch_lowrank_merge(call.context(), call.write(w), call.read(a), call.read(b), scale);
  call.copy_back();
}

}  // namespace
}  // namespace ftengine

PYBIND11_MODULE(_emulated_cuda, module) {
  module.doc() = "The CUDA kernels on the host; `order` decides in which order blocks and threads run.";
  module.def("shrink", &ftengine::shrink);
  module.def("expand", &ftengine::expand);
  module.def("backward_output", &ftengine::backward_output);
  module.def("backward_input", &ftengine::backward_input);
  module.def("merge", &ftengine::merge);
  module.def("run_fault", &ftengine::run_fault, "Run a small kernel that is wrong by name; what it computed.");
#ifdef __SANITIZE_ADDRESS__
  module.attr("sanitized") = true;
#else
  module.attr("sanitized") = false;
#endif
}
