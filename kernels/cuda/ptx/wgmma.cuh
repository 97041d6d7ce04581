// Products of 64xNx16 by a warpgroup: four warps that start at a multiple of four (sm_90a). Both operands lie in shared
// memory in lines of 128 bytes, swizzled by 128 bytes; sums are f32 in registers. K runs along the lines, or, of a
// transposed operand, across them.
//
// Thread t of the warpgroup holds, of rows r = t / 32 * 16 + t % 32 / 4 and r + 8, columns c = t % 4 * 2 and c + 1 of
// each eight: sums[4 * j..] are (r, 8j + c), (r, 8j + c + 1), (r + 8, 8j + c), (r + 8, 8j + c + 1).
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ptx {

// How many registers a thread of this warpgroup has from here on.
template <uint32_t COUNT>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <uint32_t COUNT>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Orders what was done to registers before with the products behind it.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until no more than `PENDING` groups of products are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Of an operand at a multiple of 1024 bytes: groups of 8 rows are 1024 bytes apart, the swizzle is of 128 bytes. 16
// further along K is 32 bytes: 2 more.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}

// Of a transposed operand: 8 lines, which are 8 of K, are 1024 bytes, and the next 64 of M or N `next` bytes further on.
// 16 further along K is 2048 bytes: 128 more.
__device__ __forceinline__ uint64_t wgmma_operand_across(uint32_t address, uint32_t next) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) | static_cast<uint64_t>(next >> 4) << 16 |
         (1024ull >> 4) << 32 | 1ull << 62;
}

// The texts of the instructions: registers by number.
#define R_0_7 "%0, %1, %2, %3, %4, %5, %6, %7"
#define R_8_15 "%8, %9, %10, %11, %12, %13, %14, %15"
#define R_0_31         \
  R_0_7 ", " R_8_15    \
        ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R_32_63 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define R_64_127 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, " \
  "%121, %122, %123, %124, %125, %126, %127"
#define D_4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define D_8 D_4(0), D_4(4)
#define D_16(I) D_4(I), D_4(I + 4), D_4(I + 8), D_4(I + 12)
#define D_32 D_16(0), D_16(16)
#define D_64 D_32, D_16(32), D_16(48)
#define D_128 D_64, D_16(64), D_16(80), D_16(96), D_16(112)

// d += a · bᵀ, or without `accumulate` d = a · bᵀ; A and B say which operand is transposed. In the macro, REGISTERS and
// SUMS are d's, and the others the numbers of what comes behind them.
#define WGMMA(T, TYPE, N, COUNT, SUMS, REGISTERS, A, B, ACCUMULATE, TRANSPOSED)                                      \
  template <bool TRANSPOSE_A, bool TRANSPOSE_B>                                                                      \
  __device__ __forceinline__ void wgmma(T, float (&d)[COUNT], uint64_t a, uint64_t b, bool accumulate) {             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE ", 0;\n"                                            \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, " A ", " B         \
                 ", p, 1, 1, " TRANSPOSED ";\n}"                                                                     \
                 : SUMS                                                                                              \
                 : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B));      \
  }
#define WGMMA_TYPE(T, TYPE)                                                                                           \
  WGMMA(T, TYPE, "16", 8, D_8, R_0_7, "%8", "%9", "%10", "%11, %12")                                                  \
  WGMMA(T, TYPE, "32", 16, D_16(0), R_0_7 ", " R_8_15, "%16", "%17", "%18", "%19, %20")                               \
  WGMMA(T, TYPE, "64", 32, D_32, R_0_31, "%32", "%33", "%34", "%35, %36")                                             \
  WGMMA(T, TYPE, "128", 64, D_64, R_0_31 ", " R_32_63, "%64", "%65", "%66", "%67, %68")                               \
  WGMMA(T, TYPE, "256", 128, D_128, R_0_31 ", " R_32_63 ", " R_64_127, "%128", "%129", "%130", "%131, %132")

WGMMA_TYPE(__nv_bfloat16, "bf16")
WGMMA_TYPE(__half, "f16")

#undef WGMMA_TYPE
#undef WGMMA
#undef D_128
#undef D_64
#undef D_32
#undef D_16
#undef D_8
#undef D_4
#undef R_64_127
#undef R_32_63
#undef R_0_31
#undef R_8_15
#undef R_0_7

}  // namespace ptx
