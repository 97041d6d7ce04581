"""OpenAI's triton_kernels, as vLLM's wheel has them."""

import torch

from .glue import silu_mul_interleaved
from .inputs import Unavailable, sort_plan
from .no_gpu import Specialized, pretend_h100
from .peer import Peer
from .timing import short


class TritonKernelsPeer(Peer):
    """OpenAI triton_kernels: routing + matmul_ogs with the activation in its epilogue."""

    interleaved = True

    def __init__(self, ctx):
        super().__init__(ctx)
        try:
            import triton_kernels.matmul_ogs as mo
            import triton_kernels.matmul_ogs_details.opt_flags as of
            import triton_kernels.routing as ro
        except Exception as e:
            raise Unavailable("triton_kernels: " + short(e))
        self.mo, self.ro, self.of = mo, ro, of
        if ctx.tiny:
            pretend_h100()
            mo.specialize = Specialized
        self.act = mo.FusedActivation(mo.FnSpecs("silu_mul_interleaved", silu_mul_interleaved, ()), (), 2)

    def variants(self, case, impl):
        return [
            ("default", {}),
            ("persistent", dict(is_persistent=True)),
            ("not persistent", dict(is_persistent=False)),
        ]

    def build(self, case, impl, p):
        mo, ro, k, E = self.mo, self.ro, case.k, case.E

        def given(r):  # its routing data, built from the given ids
            order, inv, counts, _ = sort_plan(case.sets[r].ids, E)
            slot, place, hist = order.to(torch.int32), inv, counts.to(torch.int32)
            data = ro.RoutingData(
                case.sets[r].w.flatten()[order], hist, E, k, ro.compute_expt_data(hist, E, order.numel())
            )
            return data, ro.GatherIndx(slot, place), ro.ScatterIndx(place, slot)

        plans = [given(r) for r in range(case.R)]

        def run(r, plan):
            self.of.reset_opt_flags_constraints()
            if p:
                self.of.update_opt_flags_constraints(dict(p))
            try:
                rdata, gather, scatter = plan
                w13, w2 = case.weights(r)
                h = mo.matmul_ogs(
                    case.sets[r].x,
                    w13.transpose(-2, -1),
                    None,
                    rdata,
                    gather_indx=gather,
                    precision_config=mo.PrecisionConfig(),
                    fused_activation=self.act,
                )
                return mo.matmul_ogs(
                    h,
                    w2.transpose(-2, -1),
                    None,
                    rdata,
                    scatter_indx=scatter,
                    precision_config=mo.PrecisionConfig(),
                    gammas=rdata.gate_scal,
                )
            finally:
                self.of.reset_opt_flags_constraints()

        return {"experts": lambda r: run(r, plans[r])}
