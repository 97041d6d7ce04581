"""vLLM's CUDA routing ops, out of its wheel."""

import os

import torch

from .timing import short


def load_moe_ops(ctx):
    """vLLM's CUDA routing ops; None (and why) where the library does not load."""
    path = os.path.join(ctx.peers, "vllm", "_moe_C.so")
    if ctx.safe or ctx.kind != "cuda" or not os.path.exists(path):
        return None, "no _moe_C (" + (
            "second start" if ctx.safe else ctx.kind if ctx.kind != "cuda" else "not fetched"
        ) + ")"
    try:
        torch.ops.load_library(path)
        return torch.ops._moe_C, ""
    except Exception as e:
        return None, "_moe_C: " + short(e)


def moe_align(ops, ids, E, bm):
    """The wheel's align op with its own buffer sizes (padded to whole blocks)."""
    S = ids.numel()
    rows = S + E * (bm - 1)
    if S < E:
        rows = min(rows, S * bm)
    rows = (rows + bm - 1) // bm * bm
    dev = ids.device
    sorted_ids = torch.empty((rows,), dtype=torch.int32, device=dev)
    experts = torch.empty((rows // bm,), dtype=torch.int32, device=dev)
    post = torch.empty((1,), dtype=torch.int32, device=dev)
    n = len(ops.moe_align_block_size.default._schema.arguments)
    ops.moe_align_block_size(ids, E, bm, sorted_ids, experts, post, *([None] * (n - 6)))
    return sorted_ids, experts, post
