// What the kernels ask of GCC and Clang.

#pragma once

#define FTENGINE_INLINE inline __attribute__((always_inline))
#define FTENGINE_LAMBDA __attribute__((always_inline))
#define FTENGINE_UNROLL _Pragma("GCC unroll 16")
