// The intrinsics that torch's kernels use on a processor without AVX-512, found in the place of all
// that GCC has: those of AVX-512 are a sixth of what it reads for a kernel.

#pragma once

#if defined(__GNUC__) && __GNUC__ >= 11 && !defined(__clang__) && !defined(__AVX512F__)
#define _IMMINTRIN_H_INCLUDED  // what follows asks for it
#include <x86gprintrin.h>
#include <mmintrin.h>
#include <xmmintrin.h>
#include <emmintrin.h>
#include <pmmintrin.h>
#include <tmmintrin.h>
#include <smmintrin.h>
#include <wmmintrin.h>
#include <avxintrin.h>
#include <avxvnniintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
#include <f16cintrin.h>
#else
#include_next <immintrin.h>
#endif
