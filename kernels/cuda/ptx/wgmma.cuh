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

// Until all are done, of which these are the sums: none is read before.
template <uint32_t N>
__device__ __forceinline__ void wgmma_wait_for(float (&sums)[N]) {
  wgmma_wait<0>();
#pragma unroll
  for (uint32_t i = 0; i < N; i++) asm volatile("" : "+f"(sums[i]));
}

// Of an operand at a multiple of 1024 bytes, swizzled by 128 bytes: groups of 8 lines are 1024 bytes apart. 16 further along K
// is 32 bytes, 2 more; of a transposed operand of 64 rows 16 lines, 128 more.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}

// The texts of the instructions: the first so many sums, by number and as operands.
#define R_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define R_16 R_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define R_32 R_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R_36 R_32 ", %32, %33, %34, %35"
#define R_40 R_36 ", %36, %37, %38, %39"
#define R_44 R_40 ", %40, %41, %42, %43"
#define R_48 R_44 ", %44, %45, %46, %47"
#define R_52 R_48 ", %48, %49, %50, %51"
#define R_56 R_52 ", %52, %53, %54, %55"
#define R_60 R_56 ", %56, %57, %58, %59"
#define R_64 R_60 ", %60, %61, %62, %63"
#define R_68 R_64 ", %64, %65, %66, %67"
#define R_72 R_68 ", %68, %69, %70, %71"
#define R_76 R_72 ", %72, %73, %74, %75"
#define R_80 R_76 ", %76, %77, %78, %79"
#define D_4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define D_8 D_4(0), D_4(4)
#define D_16 D_8, D_4(8), D_4(12)
#define D_32 D_16, D_4(16), D_4(20), D_4(24), D_4(28)
#define D_36 D_32, D_4(32)
#define D_40 D_36, D_4(36)
#define D_44 D_40, D_4(40)
#define D_48 D_44, D_4(44)
#define D_52 D_48, D_4(48)
#define D_56 D_52, D_4(52)
#define D_60 D_56, D_4(56)
#define D_64 D_60, D_4(60)
#define D_68 D_64, D_4(64)
#define D_72 D_68, D_4(68)
#define D_76 D_72, D_4(72)
#define D_80 D_76, D_4(76)

// d += a · bᵀ of 64xNx16, N twice the sums of a thread. In the macro, REGISTERS and SUMS are d's, and A, B and TRANSPOSED the
// numbers of what comes behind them.
#define WGMMA(T, TYPE, N, COUNT, SUMS, REGISTERS, A, B, TRANSPOSED)                                             \
  template <bool TRANSPOSE_A>                                                                                   \
  __device__ __forceinline__ void wgmma(T, float (&d)[COUNT], uint64_t a, uint64_t b) {                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, " A ", " B   \
                 ", 1, 1, 1, " TRANSPOSED ", 0;"                                                                \
                 : SUMS                                                                                         \
                 : "l"(a), "l"(b), "n"(TRANSPOSE_A));                                                           \
  }
#define WGMMA_TYPE(T, TYPE) \
  WGMMA(T, TYPE, "16", 8, D_8, R_8, "%8", "%9", "%10") \
  WGMMA(T, TYPE, "32", 16, D_16, R_16, "%16", "%17", "%18") \
  WGMMA(T, TYPE, "64", 32, D_32, R_32, "%32", "%33", "%34") \
  WGMMA(T, TYPE, "72", 36, D_36, R_36, "%36", "%37", "%38") \
  WGMMA(T, TYPE, "80", 40, D_40, R_40, "%40", "%41", "%42") \
  WGMMA(T, TYPE, "88", 44, D_44, R_44, "%44", "%45", "%46") \
  WGMMA(T, TYPE, "96", 48, D_48, R_48, "%48", "%49", "%50") \
  WGMMA(T, TYPE, "104", 52, D_52, R_52, "%52", "%53", "%54") \
  WGMMA(T, TYPE, "112", 56, D_56, R_56, "%56", "%57", "%58") \
  WGMMA(T, TYPE, "120", 60, D_60, R_60, "%60", "%61", "%62") \
  WGMMA(T, TYPE, "128", 64, D_64, R_64, "%64", "%65", "%66") \
  WGMMA(T, TYPE, "136", 68, D_68, R_68, "%68", "%69", "%70") \
  WGMMA(T, TYPE, "144", 72, D_72, R_72, "%72", "%73", "%74") \
  WGMMA(T, TYPE, "152", 76, D_76, R_76, "%76", "%77", "%78") \
  WGMMA(T, TYPE, "160", 80, D_80, R_80, "%80", "%81", "%82")

WGMMA_TYPE(__nv_bfloat16, "bf16")
WGMMA_TYPE(__half, "f16")

#undef WGMMA_TYPE
#undef WGMMA

}  // namespace ptx
