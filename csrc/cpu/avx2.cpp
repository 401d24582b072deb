#include "cpu/vector_avx2.h"

#include "cpu/templates.h"

namespace ftengine::cpu {

const InstructionSet kAvx2 = {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
                              {project<float>, expand<float>, contract<float>, expand<float>},
                              {project<bfloat16>, expand<bfloat16>, contract<bfloat16>, expand<bfloat16>}};

}  // namespace ftengine::cpu
