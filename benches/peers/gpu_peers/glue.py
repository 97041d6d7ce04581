"""What stands around a peer's grouped GEMMs where it brings no kernel of its own: gather, SwiGLU and combination, in
Triton; in plain torch where Triton cannot run.
"""

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # the torch peers still run
    triton = tl = None

if triton is not None:

    @triton.jit
    def _scatter_rows(x_ptr, pos_ptr, out_ptr, H, K, BLOCK: tl.constexpr):
        """out[pos[s], :] = x[s // K, :] for slot s."""
        s = tl.program_id(0)
        col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        row = tl.load(pos_ptr + s).to(tl.int64)
        token = (s // K).to(tl.int64)
        v = tl.load(x_ptr + token * H + col, mask=col < H)
        tl.store(out_ptr + row * H + col, v, mask=col < H)

    @triton.jit
    def _silu_mul(h_ptr, pos_ptr, out_ptr, I, HAS_POS: tl.constexpr, BLOCK: tl.constexpr):
        """out[r, :] = silu(h[r, :I]) * h[r, I:] with r = pos[s] (or s)."""
        s = tl.program_id(0)
        col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        if HAS_POS:
            row = tl.load(pos_ptr + s).to(tl.int64)
        else:
            row = s.to(tl.int64)
        g = tl.load(h_ptr + row * 2 * I + col, mask=col < I, other=0.0).to(tl.float32)
        u = tl.load(h_ptr + row * 2 * I + I + col, mask=col < I, other=0.0).to(tl.float32)
        a = g / (1.0 + tl.exp(-g)) * u
        tl.store(out_ptr + row * I + col, a.to(out_ptr.dtype.element_ty), mask=col < I)

    @triton.jit
    def _combine(
        y_ptr,
        pos_ptr,
        w_ptr,
        out_ptr,
        H,
        K: tl.constexpr,
        HAS_POS: tl.constexpr,
        HAS_W: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """out[t, :] = sum_j w[t, j] * y[pos[t*K+j], :] in float32."""
        t = tl.program_id(0)
        col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        acc = tl.zeros((BLOCK,), dtype=tl.float32)
        for j in tl.static_range(K):
            s = t * K + j
            if HAS_POS:
                row = tl.load(pos_ptr + s).to(tl.int64)
            else:
                row = s.to(tl.int64)
            v = tl.load(y_ptr + row * H + col, mask=col < H, other=0.0).to(tl.float32)
            if HAS_W:
                v = v * tl.load(w_ptr + s).to(tl.float32)
            acc += v
        tl.store(out_ptr + t.to(tl.int64) * H + col, acc.to(out_ptr.dtype.element_ty), mask=col < H)

    @triton.jit(repr=lambda _: "silu_mul_interleaved")
    def silu_mul_interleaved(input):
        """Epilogue for triton_kernels: columns are gate0, up0, gate1, up1, ..."""
        gate, up = tl.split(tl.reshape(input, (input.shape[0], input.shape[1] // 2, 2)))
        gate = gate.to(tl.float32)
        return gate / (1.0 + tl.exp(-gate)) * up.to(tl.float32)


def _blocks(n):
    return 1024 if n >= 1024 else 128


def scatter_rows(ctx, x, pos, out, k):
    H = x.shape[1]
    if not ctx.glue:
        out[pos.long()] = x.repeat_interleave(k, 0)
        return out
    b = _blocks(H)
    _scatter_rows[(pos.numel(), triton.cdiv(H, b))](x, pos, out, H, k, BLOCK=b, num_warps=4)
    return out


def silu_mul(ctx, h, out, pos=None):
    I = out.shape[-1]
    if not ctx.glue:
        g, u = h.float().chunk(2, -1)
        out.copy_(F.silu(g) * u)
        return out
    b = _blocks(I)
    rows = pos.numel() if pos is not None else out.numel() // I
    _silu_mul[(rows, triton.cdiv(I, b))](h, pos, out, I, HAS_POS=pos is not None, BLOCK=b, num_warps=4)
    return out


def combine(ctx, y, pos, w, T, k):
    H = y.shape[-1]
    out = torch.empty((T, H), dtype=y.dtype, device=y.device)
    if not ctx.glue:
        v = y.view(-1, H)
        v = (v[pos.long()] if pos is not None else v).float().view(T, k, H)
        out.copy_((v * w[..., None] if w is not None else v).sum(1))
        return out
    b = _blocks(H)
    _combine[(T, triton.cdiv(H, b))](
        y, pos, w, out, H, K=k, HAS_POS=pos is not None, HAS_W=w is not None, BLOCK=b, num_warps=4
    )
    return out


def silu_mul_pos(ctx, h, act, pos):
    if not ctx.glue:
        rows = pos.long()
        g, u = h[rows].float().chunk(2, -1)
        act[rows] = (F.silu(g) * u).to(act.dtype)
        return
    silu_mul(ctx, h, act, pos)
