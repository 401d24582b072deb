#define FTENGINE_VECTOR "cpu/vector_avx512.h"
#include "cpu/templates.h"

namespace ftengine::cpu {

const InstructionSet kAvx512 = {"avx512",
                                [] {
                                  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
                                },
                                kernels_of<InFp32<float>>(), kernels_of<InFp32<bfloat16>>()};

}  // namespace ftengine::cpu
