"""A peer's own process: runs the rows that the parent names, and reports each result as it is there."""

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from types import SimpleNamespace as NS

import torch

from data import Source

from .ceilings import ceilings
from .clock import Gpu, Host
from .deepgemm_peer import DeepGemmPeer
from .glue import triton
from .inputs import Case, Unavailable, Weights
from .plan import TRITON_WORKERS, case_fields, median, rates
from .routing_peer import RoutingPeer
from .tiles import label
from .timing import measure, short
from .torch_peer import TorchPeer
from .triton_kernels_peer import TritonKernelsPeer
from .vllm_peer import VllmPeer

PEERS = {
    "torch": TorchPeer, "vllm": VllmPeer, "deepgemm": DeepGemmPeer, "triton_kernels": TritonKernelsPeer,
    "routing": RoutingPeer,
}  # fmt: skip
WRONG_ABOVE = 2e-2


class Ctx:
    """Where and how this process computes."""

    def __init__(self, args):
        self.kind = args.device  # cuda, cpu, or meta: shapes only, to compile
        self.dev = torch.device(self.kind)
        self.clock = Gpu() if self.kind == "cuda" else Host()
        self.tiny = self.kind == "cpu"
        self.dir, self.peers, self.graph_max = args.inputs, args.peers_dir, args.graph_max
        with open(os.path.join(self.dir, "manifest.json")) as file:
            manifest = json.load(file)
        self.shapes = {shape["preset"]: shape for shape in manifest["presets"]}
        self.cases = {(case["preset"], case["tokens"], case["distribution"]): case for case in manifest["cases"]}
        self.safe, self.fake, self._base, self._source = args.safe, False, None, None
        self.needs_logits = args.name == "routing"
        interpret = os.environ.get("TRITON_INTERPRET") == "1"
        self.glue = triton is not None and (self.kind != "cpu" or interpret)
        # Triton's interpreter, which only the smoke test uses, cannot multiply bf16 matrices.
        self.dtype = torch.float16 if interpret and args.name in TRITON_WORKERS else torch.bfloat16

    @property
    def source(self):
        self._source = self._source or Source(self.dev)
        return self._source

    def fake_tensor(self, shape):
        """A bf16 CUDA tensor of any shape over a few bytes: for launches that touch no data."""
        if self._base is None:
            self._base = torch.zeros(4096, dtype=torch.int16, device="cuda")
        cai = dict(shape=tuple(shape), typestr="<i2", data=(self._base.data_ptr(), False), version=3, strides=None)
        return torch.as_tensor(NS(__cuda_array_interface__=cai), device="cuda").view(torch.bfloat16)


class RowRunner:
    """Runs rows of one peer and hands every result to emit()."""

    def __init__(self, ctx, peer, emit, tell):
        self.ctx, self.peer, self.emit, self.tell = ctx, peer, emit, tell
        self.W = self.case = self.key = None

    def drop(self, weights=True):
        self.case = None
        if weights:
            self.W = None
        self.ctx.clock.free()

    def case_of(self, row, weights=True):
        key = row["preset"], row["T"], row["dist"]
        if weights and (self.W is None or self.W.preset != row["preset"]):
            self.drop()
            self.W = Weights(self.ctx, row["preset"], self.peer.interleaved)
        if self.case is None or self.key != key:
            self.drop(weights=False)
            self.key, self.case = key, Case(self.ctx, self.W, *key, hidden=weights)
        return self.case

    def record(self, row, case, peer, unit, times, mode, relerr, variant="", note=""):
        us = median(times)
        status = "ok" if relerr is None or relerr <= WRONG_ABOVE else "WRONG"
        if relerr is None and unit != "gemm":
            status = "unchecked"
        d = dict(
            case.fields, peer=peer, unit=unit, us=round(us, 2), us_min=round(min(times), 2), n=len(times), mode=mode,
            relerr="" if relerr is None else f"{relerr:.2e}", status=status, variant=variant,
            note="; ".join(x for x in (note, self.peer.note) if x),
        )  # fmt: skip
        if unit in ("experts", "layer", "gemm"):
            d |= rates(case.files, us)
        self.emit(row, d)

    def fail(self, row, status, note, variant="", unit=""):
        fields = case_fields(self.ctx.shapes[row["preset"]], self.ctx.cases[row["preset"], row["T"], row["dist"]])
        self.emit(row, dict(fields, peer=row["impl"], unit=unit, status=status, variant=variant, note=note))

    def run(self, row, left):
        """left() = seconds this worker may still spend."""
        try:
            if row["impl"] == "routing":
                return self.run_routing(row)
            self.run_moe(row, left)
        except Unavailable as e:
            self.fail(row, "skipped", str(e))
        except Exception as e:
            oom = isinstance(e, torch.OutOfMemoryError)
            self.tell(traceback.format_exc())
            self.fail(row, "oom" if oom else "error", short(e))
            self.drop()
            self.ctx.clock.sync()  # a broken CUDA context ends this worker here

    def run_moe(self, row, left):
        impl, case = row["impl"], self.case_of(row)
        # The interpreter takes seconds for each: two are a choice as well.
        variants = self.peer.variants(case, impl)[: 2 if self.ctx.tiny else None]
        best, lost = None, []
        if len(variants) > 1:
            for name, params in variants:
                if best is not None and left() < 4:
                    break
                try:
                    us = self.try_variant(case, impl, params)
                    lost.append(f"{label(name, params)} {us:.1f}")
                    if best is None or us < best[0]:
                        best = (us, name, params)
                except Exception as e:
                    self.tell(f"{impl} {row['preset']} T={case.T} variant {name} {params}: {short(e, 400)}")
                    lost.append(f"{name}: {short(e, 60)}")
                    self.ctx.clock.sync()  # raises when the context is gone
            self.tell(f"[variants] {impl} {row['preset']} T={case.T} {row['dist']}: " + " | ".join(lost))
            if best is None:
                raise RuntimeError("no variant ran: " + "; ".join(lost))
            _, name, params = best
        else:
            name, params = variants[0]
        units = self.peer.build(case, impl, params)
        for unit, fn in units.items():
            try:
                self.run_unit(row, case, impl, unit, fn, label(name, params))
            except Exception as e:
                self.tell(traceback.format_exc())
                self.fail(
                    row,
                    "oom" if isinstance(e, torch.OutOfMemoryError) else "error",
                    short(e),
                    label(name, params),
                    unit,
                )
                self.ctx.clock.sync()  # raises when the context is gone

    def try_variant(self, case, impl, params):
        units = self.peer.build(case, impl, params)
        unit, fn = next(iter(units.items()))
        return median(measure(self.ctx, fn, min(case.R, 4), case.T, self.peer.graph_ok(impl, unit), quick=True)[0])

    def run_unit(self, row, case, impl, unit, fn, variant):
        case.poison()
        times, outs, mode, note, _graph = measure(self.ctx, fn, case.R, case.T, self.peer.graph_ok(impl, unit))
        relerr = None
        if outs[0] is not None:
            relerr = max(nan_inf(case.check(r, outs[r])) for r in {0, case.R - 1})
        self.record(row, case, impl, unit, times, mode, relerr, variant, note)

    def run_routing(self, row):
        case = self.case_of(row, weights=False)
        for peer, unit, fn, check, graph_ok in self.peer.candidates(case):
            try:
                t, outs, mode, note, _graph = measure(self.ctx, fn, case.R, case.T, graph_ok)
                relerr = None
                if check is not None:
                    relerr = max(nan_inf(check(r, outs[r])) for r in {0, case.R - 1})
                self.record(row, case, "route: " + peer, unit, t, mode, relerr, "", note)
            except Exception as e:
                self.tell(traceback.format_exc())
                self.fail(dict(row, impl="route: " + peer), "error", short(e), unit=unit)
                self.ctx.clock.sync()


def nan_inf(v):
    return float("inf") if v != v else v


def environment(ctx):
    versions = dict(python=sys.version.split()[0], torch=torch.__version__, triton=getattr(triton, "__version__", None))
    return versions | ctx.clock.facts()


def die_with_parent():
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except Exception:
        pass


def worker_main(args):
    """Read commands (one JSON per line) on stdin, write events on the original stdout."""
    die_with_parent()
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    lock = threading.Lock()

    def send(**ev):
        with lock:
            wire.write(json.dumps(ev) + "\n")
            wire.flush()

    def tell(text):
        sys.stderr.write(f"[{args.name}] {text.rstrip()}\n")
        sys.stderr.flush()

    ctx = Ctx(args)
    torch.set_grad_enabled(False)
    try:
        ctx.clock.start()
        environment(ctx)
    except Exception as e:
        return send(ev="ready", env={}, available=False, why="CUDA: " + short(e), note="")
    peer, why = None, ""
    if args.name != "ceilings":
        try:
            peer = PEERS[args.name](ctx)
        except Unavailable as e:
            why = str(e)
        except Exception as e:
            tell(traceback.format_exc())
            why = short(e)
    send(
        ev="ready",
        env=environment(ctx),
        available=peer is not None or args.name == "ceilings",
        why=why,
        note=getattr(peer, "note", ""),
    )
    runner = RowRunner(ctx, peer, lambda row, d: send(ev="row", row=row.get("id"), data=d), tell) if peer else None
    gc.collect()
    gc.freeze()  # later collections skip all that was imported
    for line in sys.stdin:
        cmd = json.loads(line)
        if cmd["cmd"] == "quit":
            break
        end = time.monotonic() + cmd["seconds"]
        if cmd["cmd"] == "ceilings":
            send(ev="start", row=None)
            ceilings(ctx, lambda row, d: send(ev="row", row=None, data=d))
            send(ev="end")
            continue
        for row in cmd["rows"]:
            left = lambda: end - time.monotonic()
            if left() < 1.5:
                break
            send(ev="start", row=row["id"])
            runner.run(row, left)
            send(ev="done", row=row["id"])
        runner.drop()
        send(ev="end")
