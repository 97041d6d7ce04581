"""vLLM's Triton kernel."""

import os
from types import SimpleNamespace as NS

import torch

from .glue import combine, silu_mul, tl, triton
from .inputs import Unavailable, align_torch
from .load import by_name, load_file
from .peer import Peer
from .routing_ops import load_moe_ops, moe_align
from .tiles import CONFIG_KEYS, distinct, tile_pool, tuned_configs


class VllmPeer(Peer):
    """vLLM's Triton fused_moe_kernel, launched by the wheel's own launcher."""

    def __init__(self, ctx):
        super().__init__(ctx)
        if triton is None:
            raise Unavailable("no triton")
        platform = NS(
            is_rocm=lambda: False,
            is_cuda=lambda: True,
            is_xpu=lambda: False,
            is_cpu=lambda: False,
            is_cuda_alike=lambda: True,
            is_device_capability=lambda c: c in (90, (9, 0)),
            has_device_capability=lambda c: c <= 90 if isinstance(c, int) else tuple(c) <= (9, 0),
        )
        base = "vllm.model_executor.layers.fused_moe."
        none = lambda *a, **k: None
        fixed = {
            "vllm.envs": dict(VLLM_BATCH_INVARIANT=False, VLLM_TUNED_CONFIG_FOLDER=None, VLLM_TRITON_USE_TD=False),
            "vllm.platforms": dict(current_platform=platform),
            "vllm.triton_utils": dict(tl=tl, triton=triton),
            "vllm.logger": dict(
                init_logger=lambda n: NS(
                    **{
                        m: none
                        for m in ("info", "warning", "debug", "error", "info_once", "warning_once", "debug_once")
                    }
                )
            ),
            "vllm.utils.torch_utils": dict(direct_register_custom_op=none),
            "vllm.utils.math_utils": dict(
                next_power_of_2=triton.next_power_of_2, cdiv=triton.cdiv, round_up=lambda a, b: (a + b - 1) // b * b
            ),
            base + "utils": dict(
                enable_swap_ab=lambda *a: False,
                resolve_moe_use_td=lambda *a: False,
                warn_if_moe_use_td_ineffective=none,
                moe_kernel_quantize_input=none,
            ),
        }
        self.dir = os.path.join(ctx.peers, "vllm")
        m = load_file(os.path.join(self.dir, "fused_moe.py"), "peer_vllm_fused_moe", "vllm", fixed)
        self.launch = getattr(m, "invoke_fused_moe_triton_kernel", None) or m.invoke_fused_moe_kernel
        self.default = m.get_default_config
        self.ops, self.note = load_moe_ops(ctx)

    def variants(self, case, impl):
        v = [
            (
                "default",
                by_name(
                    self.default,
                    dict(
                        M=case.T,
                        E=case.E,
                        N=case.I,
                        K=case.H,
                        topk=case.k,
                        dtype=None,
                        is_marlin=False,
                        block_shape=None,
                    ),
                ),
            )
        ]
        v[0] = ("default", {a: b for a, b in v[0][1].items() if a in CONFIG_KEYS})
        v += tuned_configs(os.path.join(self.dir, "configs"), case.E, case.I, case.T)
        v += [("sweep", c) for c in tile_pool(case.T, case.k, case.E)]
        return distinct(v)

    def compute_type(self):
        return tl.bfloat16 if self.ctx.dtype == torch.bfloat16 else tl.float16

    def build(self, case, impl, cfg):
        ctx, T, k, E, H, I = self.ctx, case.T, case.k, case.E, case.H, case.I
        bm, S = cfg["BLOCK_SIZE_M"], case.T * case.k
        c1 = case.buf("c1", (T, k, 2 * I))
        c2 = case.buf("c2", (S, I))
        c3 = case.buf("c3", (T, k, H))
        naive = S * 4 <= E  # the wheel's own rule for skipping the align

        def given(r):
            ids = case.sets[r].ids
            if naive:
                return None, ids.view(-1), torch.full((1,), S * bm, dtype=torch.int32, device=ids.device)
            return align_torch(ids, E, bm)

        def inside(r):
            if naive or self.ops is None:
                return given(r)
            return moe_align(self.ops, case.sets[r].ids, E, bm)

        plans = [given(r) for r in range(case.R)]
        fixed = dict(
            A_scale=None,
            B_scale=None,
            compute_type=self.compute_type(),
            use_fp8_w8a8=False,
            use_int8_w8a8=False,
            use_int8_w8a16=False,
            use_int4_w4a16=False,
            per_channel_quant=False,
            block_shape=None,
            B_bias=None,
            B_zp=None,
            config=cfg,
        )

        def run(r, plan):
            sid, eid, post = plan
            s, (w13, w2) = case.sets[r], case.weights(r)
            common = dict(
                fixed,
                topk_weights=s.w,
                topk_ids=s.ids,
                sorted_token_ids=sid,
                expert_ids=eid,
                num_tokens_post_padded=post,
            )
            by_name(self.launch, dict(common, A=s.x, B=w13, C=c1, mul_routed_weight=False, top_k=k))
            silu_mul(ctx, c1, c2)
            by_name(self.launch, dict(common, A=c2, B=w2, C=c3, mul_routed_weight=True, top_k=1))
            return combine(ctx, c3, None, None, T, k)

        return {"experts": lambda r: run(r, plans[r]), "layer": lambda r: run(r, inside(r))}
