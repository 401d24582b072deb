#include "cpu/vector_avx512.h"

#include "cpu/templates.h"

namespace ftengine::cpu {

const InstructionSet kAvx512 = {"avx512",
                                [] {
                                  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
                                },
                                {project<float>, expand<float>, contract<float>, expand<float>},
                                {project<bfloat16>, expand<bfloat16>, contract<bfloat16>, expand<bfloat16>}};

}  // namespace ftengine::cpu
