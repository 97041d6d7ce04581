"""Weights, hidden states and routing on the device: the numbers that `ours-gpu` has too, by `data.py` and its files."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .plan import case_fields

HIDDEN_SCALE, LOGIT_SCALE = math.sqrt(3.0), 4.0
# Of our first token and the reference's.
SAME_WITHIN = 1e-2


class Unavailable(Exception):
    """The peer cannot run here, and why."""


class Weights:
    """Copies of (gate_up_proj [E, 2I, H], down_proj [E, H, I])."""

    def __init__(self, ctx, preset, interleaved):
        self.shape = ctx.shapes[preset]
        self.preset, self.interleaved = preset, interleaved
        e, h, i = (self.shape[name] for name in ("num_experts", "hidden_size", "intermediate_size"))
        if ctx.fake:
            self.copies = [(ctx.fake_tensor((e, 2 * i, h)), ctx.fake_tensor((e, h, i)))]
            return
        if ctx.kind == "meta":
            self.copies = [tuple(torch.empty(s, dtype=ctx.dtype, device="meta") for s in ((e, 2 * i, h), (e, h, i)))]
            return
        self.copies = []
        for copy in range(self.shape["copies"]):
            gate_up = ctx.source.tensor((e, 2 * i, h), ctx.dtype, "gate_up", copy)
            if interleaved:  # rows become gate0, up0, gate1, up1, ...
                for expert in gate_up:
                    expert.copy_(expert.view(2, i, h).transpose(0, 1).reshape(2 * i, h).clone())
            self.copies.append((gate_up, ctx.source.tensor((e, h, i), ctx.dtype, "down", copy)))


class Case:
    """One (preset, T, distribution): independent batches plus shared scratch buffers."""

    def __init__(self, ctx, weights, preset, tokens, dist, hidden=True):
        self.ctx, self.W, self.T = ctx, weights, tokens
        self.files = ctx.cases[preset, tokens, dist]
        shape = ctx.shapes[preset]
        names = ("num_experts", "top_k", "hidden_size", "intermediate_size")
        self.E, self.k, self.H, self.I = (shape[name] for name in names)
        self.R = 1 if ctx.kind == "meta" else self.files["batches"]
        self.fields = case_fields(shape, self.files)
        self._buf = {}
        self.sets = [self._batch(r, hidden) for r in range(self.R)]

    def _batch(self, r, hidden):
        ctx, s = self.ctx, SimpleNamespace()
        if ctx.kind == "meta":  # shapes only
            s.x = torch.empty((self.T, self.H), dtype=ctx.dtype, device="meta")
            s.logits = torch.empty((self.T, self.E), device="meta")
            s.ids = torch.empty((self.T, self.k), dtype=torch.int32, device="meta")
            s.w = torch.empty((self.T, self.k), device="meta")
            return s
        s.ids, s.w = self._file(r, "ids", torch.int32), self._file(r, "weights", torch.float32)
        if hidden:
            s.x = ctx.source.tensor((self.T, self.H), ctx.dtype, "hidden", r, HIDDEN_SCALE)
        if ctx.needs_logits:
            s.logits = ctx.source.tensor((self.T, self.E), torch.float32, "logits", r, LOGIT_SCALE)
        return s

    def _file(self, r, kind, dtype):
        numbers = bytearray(Path(self.ctx.dir, f"{self.files['stem']}-{r}.{kind}").read_bytes())
        return torch.frombuffer(numbers, dtype=dtype).view(self.T, self.k).to(self.ctx.dev)

    def weights(self, r):
        return self.W.copies[r % len(self.W.copies)]

    def buf(self, name, shape, dtype=None):
        """Scratch shared by all batches and variants of this case (poisoned when made)."""
        dtype = dtype or self.ctx.dtype
        n = math.prod(shape)
        if self.ctx.fake:
            return self.ctx.fake_tensor(shape)
        old = self._buf.get(name)
        if old is None or old.numel() < n or old.dtype != dtype:
            self._buf[name] = old = torch.empty(n, dtype=dtype, device=self.ctx.dev)
            if dtype.is_floating_point and self.ctx.kind != "meta":
                old.fill_(float("nan"))
        return old[:n].view(shape)

    def poison(self):
        """Leave NaN in the memory the next outputs will probably get, so that unwritten rows show."""
        shape = (self.T, self.H)
        _ = [torch.full(shape, float("nan"), dtype=self.ctx.dtype, device=self.ctx.dev) for _ in range(self.R)]

    def reference(self, r, tokens):
        """float32 truth for some tokens, from the bf16 inputs, nothing rounded in between."""
        s = self.sets[r]
        w13, w2 = self.weights(r)
        ids, ws = s.ids[tokens].tolist(), s.w[tokens]
        out = torch.zeros((len(tokens), self.H), device=s.x.device)
        for i, t in enumerate(tokens):
            x = s.x[t].float()
            for j, e in enumerate(ids[i]):
                gu = w13[e].float() @ x
                g, u = (gu[0::2], gu[1::2]) if self.W.interleaved else gu.chunk(2)
                out[i] += ws[i, j] * (w2[e].float() @ (F.silu(g) * u))
        return out

    def check(self, r, out):
        """Relative error of a peer's output on a random subset of tokens; NaN never passes."""
        if r == 0:
            self.same_as_ours()
        tokens = sorted(random.Random(r).sample(range(self.T), min(self.T, 8)))
        ref = self.reference(r, tokens)
        err = (out[tokens].float() - ref).norm() / ref.norm()
        return float(err) if bool(torch.isfinite(out).all()) else float("nan")

    def same_as_ours(self):
        """Our program's first token is what the reference makes of the numbers here, where that was written."""
        path = Path(self.ctx.dir, f"{self.files['stem']}.output")
        if path.exists():
            ours = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32).to(self.ctx.dev)
            ref = self.reference(0, [0])[0]
            err = float((ours - ref).norm() / ref.norm())
            if not err <= SAME_WITHIN:
                raise ValueError(f"the numbers here are not those of our program: relative error {err:.1e}")


def sort_plan(ids, E):
    """Stable sort of the slots by expert: order, its inverse, counts, inclusive offsets."""
    flat = ids.reshape(-1).long()
    order = torch.argsort(flat, stable=True)
    inv = torch.empty_like(order)
    inv[order] = torch.arange(flat.numel(), device=flat.device)
    counts = torch.zeros(E, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return order, inv.to(torch.int32), counts, torch.cumsum(counts, 0)


def align_torch(ids, E, bm):
    """vLLM's aligned layout (sorted_token_ids, expert_ids, num_tokens_post_padded) in torch."""
    flat = ids.reshape(-1).long()
    S = flat.numel()
    rows = S + E * (bm - 1)
    if S < E:
        rows = min(rows, S * bm)
    rows = (rows + bm - 1) // bm * bm
    order, _, counts, ends = sort_plan(ids, E)
    padded = (counts + bm - 1) // bm * bm
    pends = torch.cumsum(padded, 0)
    e = flat[order]
    dst = (pends - padded)[e] + torch.arange(S, device=flat.device) - (ends - counts)[e]
    sorted_ids = torch.full((rows,), S, dtype=torch.int32, device=flat.device)
    sorted_ids[dst] = order.to(torch.int32)
    starts = torch.arange(rows // bm, device=flat.device) * bm
    experts = torch.searchsorted(pends, starts, right=True).clamp_(max=E - 1).to(torch.int32)
    return sorted_ids, experts, pends[-1:].to(torch.int32)
