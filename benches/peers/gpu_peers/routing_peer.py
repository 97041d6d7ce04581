"""Routing and alignment by torch, vLLM's CUDA ops and triton_kernels."""

import torch

from .inputs import sort_plan
from .peer import Peer
from .routing_ops import load_moe_ops, moe_align
from .timing import short


class RoutingPeer(Peer):
    """Routing and align ops of several peers; each result is checked against torch.topk."""

    def __init__(self, ctx):
        super().__init__(ctx)
        self.ops, self.note = load_moe_ops(ctx)
        self.tk = None
        try:
            import triton_kernels.routing as ro

            self.tk = ro
        except Exception as e:
            self.note += " | triton_kernels: " + short(e, 60)

    def candidates(self, case):
        """[(peer, unit, fn(batch), check(batch, result) or None, graph_ok)]"""
        T, k, E = case.T, case.k, case.E
        bm = 16 if T <= 64 else 64 if T <= 512 else 128

        def same_weights(r, got):
            """Ids may differ where two logits are equal."""
            expected = route_torch(r)[0].sort(1).values
            return float((got[0].float().sort(1).values - expected).norm() / expected.norm())

        def good_align(ids):
            def check(r, got):
                sid, eid, post = got
                n, flat = int(post), ids(r).reshape(-1).long()
                sid, eid = sid[:n].long(), eid[: n // bm].long()
                slot = sid < T * k
                ok = n % bm == 0 and torch.equal(torch.sort(sid[slot]).values, torch.arange(T * k, device=sid.device))
                ok = ok and bool((flat[sid[slot]] == eid.repeat_interleave(bm)[slot]).all())
                return 0.0 if ok else float("nan")

            return check

        def given(r):
            return case.sets[r].ids

        def route_torch(r):
            p = torch.softmax(case.sets[r].logits, -1)
            v, i = torch.topk(p, k, dim=-1)
            return v / v.sum(-1, keepdim=True), i.to(torch.int32)

        out = [
            ("torch", "route", route_torch, None, True),
            ("torch", "align", lambda r: sort_plan(case.sets[r].ids, E)[1:], None, True),
            ("torch", "route+align", lambda r: sort_plan(route_torch(r)[1], E)[1:], None, True),
        ]
        if self.ops is not None:
            n = len(self.ops.topk_softmax.default._schema.arguments)
            ids_t = torch.int32

            def route_c(r):
                lo = case.sets[r].logits
                w = torch.empty((T, k), device=lo.device)
                i = torch.empty((T, k), dtype=ids_t, device=lo.device)
                self.ops.topk_softmax(w, i, torch.empty_like(i), lo, True, *([None] * (n - 5)))
                return w, i

            def both(r):
                return moe_align(self.ops, route_c(r)[1], E, bm)

            out += [
                ("vllm _moe_C", "route", route_c, same_weights, True),
                ("vllm _moe_C", "align", lambda r: moe_align(self.ops, given(r), E, bm), good_align(given), True),
                ("vllm _moe_C", "route+align", both, good_align(lambda r: route_c(r)[1]), True),
            ]
        # Its tensors are of a class of its own, which Triton's interpreter does not take.
        if self.tk is not None and not self.ctx.tiny and k & (k - 1) == 0:

            def good_tk(r, got):
                rdata, gather, _ = got
                perm = torch.sort(gather.src_indx.long()).values
                ok = int(rdata.expt_hist.sum()) == T * k and torch.equal(perm, torch.arange(T * k, device=perm.device))
                return 0.0 if ok else float("nan")

            out.append(
                ("triton_kernels", "route+align", lambda r: self.tk.routing(case.sets[r].logits, k), good_tk, True)
            )
        return out
