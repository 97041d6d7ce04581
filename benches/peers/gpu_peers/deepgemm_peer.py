"""DeepGEMM."""

import os

import torch

from .deepgemm_stand_in import StandIn
from .glue import combine, scatter_rows, silu_mul_pos
from .inputs import Unavailable, sort_plan
from .peer import Peer
from .timing import short


class DeepGemmPeer(Peer):
    """DeepGEMM's bf16 grouped GEMMs with our gather, SwiGLU and combine around them."""

    def __init__(self, ctx):
        super().__init__(ctx)
        try:
            import deep_gemm
        except Exception as e:
            deep_gemm, self.note = None, "deep_gemm: " + short(e)
        if ctx.tiny:
            self.dg = StandIn(deep_gemm)
            self.note = f"a stand-in in torch, {'with the signatures of deep_gemm' if deep_gemm else self.note}"
            return
        if deep_gemm is None:
            raise Unavailable(self.note)
        if not os.environ.get("CUDA_HOME"):
            raise Unavailable("no CUDA toolkit found: DeepGEMM compiles its kernels at run time")
        self.dg = deep_gemm
        self.note = f"deep_gemm {getattr(deep_gemm, '__version__', '?')}"

    def variants(self, case, impl):
        T, rows = case.T, case.T * case.k / case.E
        v = []
        if T <= 1024:
            v.append(("masked", dict(layout="masked")))
        if T <= 1024 or rows < 96:
            v.append(("contiguous align 64", dict(layout="contiguous", align=64)))
        if T >= 256:
            v.append(("contiguous align 128", dict(layout="contiguous", align=128)))
        return v

    def build(self, case, impl, p):
        ctx, dg, T, k, E, H, I = self.ctx, self.dg, case.T, case.k, case.E, case.H, case.I
        S = T * k
        masked = p["layout"] == "masked"
        plans, sizes = [], []
        for r in range(case.R):
            order, inv, counts, ends = sort_plan(case.sets[r].ids, E)
            flat = case.sets[r].ids.reshape(-1).long()
            within = inv.long() - (ends - counts)[flat]
            plans.append((flat, within, counts))
            sizes.append(counts.tolist())
        if masked:
            rows = max(max(c) for c in sizes)
            rows = (rows + 127) // 128 * 128  # whole tiles: a tile store must not reach the next group
            M = E * rows
            if M * (H + 3 * I) * 2 > 24 << 30:
                raise Unavailable("masked layout would take over 24 GiB")
            expected = max(1, -(-S // E))
            layouts = [c.to(torch.int32) for _, _, c in plans]
            pos = [(f * rows + w).to(torch.int32) for f, w, _ in plans]
            shape = lambda n: (E, rows, n)
        else:
            al = p["align"]
            dg.set_mk_alignment_for_contiguous_layout(al)
            M = max(sum(-(-n // al) * al for n in c) for c in sizes)
            M = -(-M // (2 * al)) * 2 * al  # whole pairs of tiles (clusters of two); the tail is -1
            pos, layouts = [], []
            for f, w, c in plans:
                padded = (c + al - 1) // al * al
                start = torch.cumsum(padded, 0) - padded
                pos.append((start[f] + w).to(torch.int32))
                lay = torch.full((M,), -1, dtype=torch.int32, device=f.device)
                lay[pos[-1].long()] = f.to(torch.int32)
                layouts.append(lay)
            shape = lambda n: (M, n)
        if ctx.fake:  # compile only: nothing to do for the kernel
            layouts = [torch.full_like(l, 0 if masked else -1) for l in layouts]
        a, h, act, y = (case.buf(n, shape(w)) for n, w in (("a", H), ("h", 2 * I), ("act", I), ("y", H)))

        def gemm(src, w, dst, layout):
            if masked:
                dg.m_grouped_bf16_gemm_nt_masked(src, w, dst, layout, expected)
            else:
                dg.set_mk_alignment_for_contiguous_layout(p["align"])
                dg.m_grouped_bf16_gemm_nt_contiguous(src, w, dst, layout)

        def gemms(r):
            w13, w2 = case.weights(r)
            gemm(a, w13, h, layouts[r])
            gemm(act, w2, y, layouts[r])

        def experts(r):
            s, (w13, w2) = case.sets[r], case.weights(r)
            scatter_rows(ctx, s.x, pos[r], a.view(M, H), k)
            gemm(a, w13, h, layouts[r])
            silu_mul_pos(ctx, h.view(M, 2 * I), act.view(M, I), pos[r])
            gemm(act, w2, y, layouts[r])
            return combine(ctx, y.view(M, H), pos[r], s.w, T, k)

        return {"gemm": gemms} if ctx.fake else {"experts": experts, "gemm": gemms}
