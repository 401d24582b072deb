#define FTENGINE_VECTOR "cpu/vector_avx2.h"
#include "cpu/templates.h"

namespace ftengine::cpu {

const InstructionSet kAvx2 = {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
                              kernels_of<InFp32<float>>(), kernels_of<InFp32<bfloat16>>()};

}  // namespace ftengine::cpu
