"""torch and transformers."""

import torch
import torch.nn.functional as F

from .glue import combine, scatter_rows, silu_mul
from .inputs import Unavailable, sort_plan
from .peer import Peer
from .timing import short


class TorchPeer(Peer):
    """torch.nn.functional.grouped_mm with our glue, and transformers' own module of experts."""

    def __init__(self, ctx):
        super().__init__(ctx)
        self.hf = None
        try:
            import transformers
            from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
        except Exception as e:
            self.note = "transformers: " + short(e)
            return
        self.note = f"transformers {transformers.__version__}"

        def experts(case, implementation):
            config = transformers.Qwen3MoeConfig(
                num_experts=case.E,
                num_experts_per_tok=case.k,
                hidden_size=case.H,
                moe_intermediate_size=case.I,
                hidden_act="silu",
            )
            config._experts_implementation = implementation
            return Qwen3MoeExperts(config)

        self.hf = experts

    def build(self, case, impl, params):
        return getattr(self, impl)(case)

    def torch_grouped_mm(self, case):
        ctx, T, k, H, I, S = self.ctx, case.T, case.k, case.H, case.I, case.T * case.k
        if not hasattr(F, "grouped_mm"):
            raise Unavailable("torch.nn.functional.grouped_mm is not in this torch")
        xg, act = case.buf("xg", (S, H)), case.buf("act", (S, I))

        def plan_of(r):
            _, inv, _, ends = sort_plan(case.sets[r].ids, case.E)
            return inv, ends.to(torch.int32)

        plans = [plan_of(r) for r in range(case.R)]

        def run(r, plan, glue=True):
            inv, offs = plan
            w13, w2 = case.weights(r)
            if glue:
                scatter_rows(ctx, case.sets[r].x, inv, xg, k)
            h = F.grouped_mm(xg, w13.transpose(-2, -1), offs=offs)
            if glue:
                silu_mul(ctx, h, act)
            y = F.grouped_mm(act, w2.transpose(-2, -1), offs=offs)
            return combine(ctx, y, inv, case.sets[r].w, T, k) if glue else None

        return {
            "experts": lambda r: run(r, plans[r]),
            "layer": lambda r: run(r, plan_of(r)),
            "gemm": lambda r: run(r, plans[r], glue=False),
        }

    def _hf(self, case, implementation):
        if self.hf is None:
            raise Unavailable(self.note)
        with torch.device("meta"):
            modules = [self.hf(case, implementation) for _ in case.W.copies]
        for module, weights in zip(modules, case.W.copies):
            module.gate_up_proj, module.down_proj = (torch.nn.Parameter(w, requires_grad=False) for w in weights)
        ids = [s.ids.long() for s in case.sets]
        ws = [s.w.to(self.ctx.dtype) for s in case.sets]
        return {"layer": lambda r: modules[r % len(modules)](case.sets[r].x, ids[r], ws[r])}

    def hf_grouped_mm(self, case):
        return self._hf(case, "grouped_mm")

    def hf_batched_mm(self, case):
        if case.T * case.k * 3 * case.H * case.I * 2 > 12 << 30:
            raise Unavailable("gathered weights would take over 12 GiB")
        return self._hf(case, "batched_mm")
