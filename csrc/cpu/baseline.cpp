#define FTENGINE_VECTOR "cpu/vector_baseline.h"
#include "cpu/templates.h"

namespace ftengine::cpu {

const InstructionSet kBaseline = {"baseline", [] { return true; }, kernels_of<InFp32<float>>(),
                                  kernels_of<InFp32<bfloat16>>()};

}  // namespace ftengine::cpu
