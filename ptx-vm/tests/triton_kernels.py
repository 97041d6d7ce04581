"""Compiles Triton kernels to PTX (no GPU needed) into a directory: GEMM, softmax, top-k, for sm_80 and sm_90."""

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        a = tl.load(a_ptr + rows[:, None] * K + (k + depth)[None, :], mask=rows[:, None] < M, other=0.0)
        b = tl.load(b_ptr + (k + depth)[:, None] * N + columns[None, :])
        acc = tl.dot(a, b, acc)
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(c_ptr + rows[:, None] * N + columns[None, :], acc.to(tl.bfloat16), mask=mask)


@triton.jit
def softmax(x_ptr, y_ptr, n, B: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, B)
    x = tl.load(x_ptr + row * n + column, mask=column < n, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + row * n + column, e / tl.sum(e, 0), mask=column < n)


@triton.jit
def topk(x_ptr, ids_ptr, values_ptr, n, k, B: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, B)
    x = tl.load(x_ptr + row * n + column, mask=column < n, other=-float("inf"))
    for j in range(k):
        best = tl.argmax(x, 0)
        tl.store(ids_ptr + row * k + j, best)
        tl.store(values_ptr + row * k + j, tl.max(x, 0))
        x = tl.where(column == best, -float("inf"), x)


def build(out, name, fn, signature, constants, arch, **options):
    names = list(signature)
    # Pointers and sizes that are multiples of 16: this is what makes Triton use cp.async.
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in ALIGNED}
    constexprs = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(fn=fn, signature=signature, constexprs=constexprs, attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with open(f"{out}/{name}_sm{arch}.ptx", "w") as file:
        file.write(f"// shared {kernel.metadata.shared}\n" + kernel.asm["ptx"])


ALIGNED = {"a_ptr", "b_ptr", "c_ptr", "N", "K", "x_ptr", "y_ptr"}


def main(out):
    scalars = {"M": "i32", "N": "i32", "K": "i32"}
    blocks = {"BM": "constexpr", "BN": "constexpr", "BK": "constexpr"}
    pointers = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*bf16"}
    for arch in (80, 90):
        sizes = {"BM": 64, "BN": 64, "BK": 32}
        build(out, "matmul", matmul, {**pointers, **scalars, **blocks}, sizes, arch, num_warps=4, num_stages=3)
        row = {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32", "B": "constexpr"}
        build(out, "softmax", softmax, row, {"B": 256}, arch, num_warps=4)
        row = {"x_ptr": "*fp32", "ids_ptr": "*i32", "values_ptr": "*fp32", "n": "i32", "k": "i32", "B": "constexpr"}
        build(out, "topk", topk, row, {"B": 128}, arch, num_warps=4)


main(sys.argv[1])
