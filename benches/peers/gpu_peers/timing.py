"""Timing of a peer's calls: events on a GPU, all batches in one CUDA graph where that is possible."""

import os
import re
import time
import traceback

import torch


def sync(ctx):
    if ctx.kind == "cuda":
        torch.cuda.synchronize()


def time_graph(ctx, fn, R, seconds, nmin, nmax):
    """All R calls in one CUDA graph. Returns us per call of each replay, and the outputs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for r in range(R):
            fn(r)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        graph.capture_begin()
        try:
            outs, why = [fn(r) for r in range(R)], None
        except Exception as e:  # a synchronisation, say
            outs, why = None, e
        try:
            graph.capture_end()
        except Exception as e:
            why = why or e
    if why is not None:
        raise why
    for o in outs:
        if torch.is_tensor(o) and o.is_floating_point():
            o.fill_(float("nan"))  # poison: the replays must write every element
    graph.replay()
    torch.cuda.synchronize()
    first = [t / R for t in timed_calls(ctx, lambda i: graph.replay(), 2)]
    n = max(nmin, min(nmax, int(seconds * 1e6 / max(1e-3, min(first) * R))))
    return [t / R for t in timed_calls(ctx, lambda i: graph.replay(), n)], outs, graph


def timed_calls(ctx, fn, n):
    """Microseconds of n calls, each between its own two events; the host runs ahead of the device."""
    if ctx.kind == "cpu":
        out = []
        for i in range(n):
            t = time.perf_counter()
            fn(i)
            out.append((time.perf_counter() - t) * 1e6)
        return out
    ev = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    torch.cuda._sleep(1_000_000)
    for i, (a, b) in enumerate(ev):
        a.record()
        fn(i)
        b.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * 1e3 for a, b in ev]


def time_eager(ctx, fn, R, seconds, nmin, nmax):
    outs = [fn(r) for r in range(R)]
    sync(ctx)
    if ctx.kind == "cpu":
        return timed_calls(ctx, lambda i: fn(i % R), 2), outs
    first = timed_calls(ctx, lambda i: fn(i % R), 2)
    n = max(nmin, min(nmax, int(seconds * 1e6 / max(1e-3, min(first)))))
    if n <= 3 and min(first) > 3e3:  # two calls of over 3 ms tell variants apart
        return first, outs
    return timed_calls(ctx, lambda i: fn(i % R), n), outs


def measure(ctx, fn, R, T, graph_ok, quick=False):
    """A graph where allowed and possible, else eager: (times, outs, mode, note, graph to keep alive)."""
    seconds, nmin, nmax = (0.01, 3, 10) if quick else (0.08, 10, 60) if T <= 1024 else (0.35, 5, 25)
    note = ""
    if ctx.kind == "cuda" and graph_ok and T <= ctx.graph_max:
        try:
            t, o, g = time_graph(ctx, fn, R, seconds, nmin, nmax)
            return t, o, "graph", note, g
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            torch.cuda.synchronize()  # a broken context raises here
            note = "no graph: " + short(e)
    t, o = time_eager(ctx, fn, R, seconds, nmin, nmax)
    return t, o, "cpu" if ctx.kind == "cpu" else "eager", note, None


def short(e, n=160):
    text = str(e)
    if not text and e.__traceback__:  # a bare assert: say which
        last = traceback.extract_tb(e.__traceback__)[-1]
        text = f"{os.path.basename(last.filename)}:{last.lineno} {last.line}"
    return re.sub(r"\s+", " ", f"{type(e).__name__}: {text}").strip()[:n]
