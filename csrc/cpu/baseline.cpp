#include "cpu/vector_baseline.h"

#include "cpu/templates.h"

namespace ftengine::cpu {

const InstructionSet kBaseline = {"baseline", [] { return true; },
                                  {project<float>, expand<float>, contract<float>, expand<float>},
                                  {project<bfloat16>, expand<bfloat16>, contract<bfloat16>, expand<bfloat16>}};

}  // namespace ftengine::cpu
