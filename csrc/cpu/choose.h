// The instruction set in use: the best that was built and that this processor has, or the one asked for.

#pragma once

#include "cpu/kernels.h"

namespace ftengine::cpu {

const InstructionSet& instruction_set();

}  // namespace ftengine::cpu
