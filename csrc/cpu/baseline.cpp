#define FTENGINE_VECTOR "cpu/vector_baseline.h"
#include "cpu/templates.h"

namespace ftengine::cpu {

const InstructionSet kBaseline = {"baseline", [] { return true; }, in_fp32<float>(), in_fp32<bfloat16>()};

}  // namespace ftengine::cpu
