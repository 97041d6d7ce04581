"""The processes that compile kernels before they are timed."""

import json
import os
import sys
import time
import traceback

import torch

from .deepgemm_peer import DeepGemmPeer
from .inputs import Case, Weights
from .no_gpu import pretend_h100
from .timing import short
from .worker import PEERS, Ctx, RowRunner, die_with_parent


def compile_main(args):
    """Push every launch of the rows on stdin through Triton's JIT with launching switched off."""
    from triton.runtime.jit import JITFunction

    pretend_h100()
    real = JITFunction.run
    JITFunction.run = lambda self, *a, grid=None, warmup=False, **k: real(self, *a, grid=grid, warmup=True, **k)
    ctx = Ctx(args)
    runners = {}

    def variants(row):
        if row["worker"] not in runners:
            runners[row["worker"]] = RowRunner(ctx, PEERS[row["worker"]](ctx), None, None)
        runner = runners[row["worker"]]
        case = runner.case_of(row)
        for name, params in runner.peer.variants(case, row["impl"]):
            yield name, params, lambda: next(iter(runner.peer.build(case, row["impl"], params).values()))(0)

    compile_loop(variants)


def dgwarm_main(args):
    """Have DeepGEMM compile its kernels before they are timed: real shapes, no data, no work."""
    ctx = Ctx(args)
    ctx.fake = True
    peer = DeepGemmPeer(ctx)

    def variants(row):
        case = Case(ctx, Weights(ctx, row["preset"], False), row["preset"], row["T"], row["dist"], hidden=False)
        for name, params in peer.variants(case, "deepgemm"):

            def one():
                peer.build(case, "deepgemm", params)["gemm"](0)
                ctx.clock.sync()

            yield name, params, one

    compile_loop(variants)


def compile_loop(variants):
    """One row per line on stdin; one report per line on stdout."""
    die_with_parent()
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.nice(10)
    torch.set_grad_enabled(False)
    for line in sys.stdin:
        row, t0, good, bad = json.loads(line), time.time(), 0, []
        try:
            for name, params, one in variants(row):
                try:
                    one()
                    good += 1
                except Exception as e:
                    if os.environ.get("PEERS_TRACE"):
                        traceback.print_exc()
                    bad.append(f"{name} {params}: {short(e, 300)}")
        except Exception as e:
            bad.append(short(e, 300))
        wire.write(json.dumps(dict(good=good, bad=bad, seconds=round(time.time() - t0, 1))) + "\n")
