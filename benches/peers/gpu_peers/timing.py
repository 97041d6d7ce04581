"""Timing of a peer's calls: all batches in one graph where that is possible, else one after another."""

import os
import re
import traceback

import torch


def time_graph(clock, fn, R, seconds, nmin, nmax):
    """All R calls in one graph. Returns us per call of each replay, the outputs, and the graph to keep alive."""
    graph, outs = clock.capture(fn, R)
    for o in outs:
        if torch.is_tensor(o) and o.is_floating_point():
            o.fill_(float("nan"))  # poison: the replays must write every element
    graph.replay()
    clock.sync()
    first = [t / R for t in clock.calls(lambda i: graph.replay(), 2)]
    n = max(nmin, min(nmax, int(seconds * 1e6 / max(1e-3, min(first) * R))))
    return [t / R for t in clock.calls(lambda i: graph.replay(), n)], outs, graph


def time_eager(clock, fn, R, seconds, nmin, nmax):
    outs = [fn(r) for r in range(R)]
    clock.sync()
    first = clock.calls(lambda i: fn(i % R), 2)
    n = max(nmin, min(nmax, int(seconds * 1e6 / max(1e-3, min(first)))))
    if n <= 3 and min(first) > 3e3:  # two calls of over 3 ms tell variants apart
        return first, outs
    return clock.calls(lambda i: fn(i % R), n), outs


def measure(ctx, fn, R, T, graph_ok, quick=False):
    """A graph where allowed and possible, else eager: (times, outs, mode, note, graph to keep alive)."""
    seconds, nmin, nmax = (0.01, 3, 10) if quick else (0.08, 10, 60) if T <= 1024 else (0.35, 5, 25)
    clock, note = ctx.clock, ""
    in_graph, one_by_one = clock.modes
    if graph_ok and T <= ctx.graph_max:
        try:
            t, o, g = time_graph(clock, fn, R, seconds, nmin, nmax)
            return t, o, in_graph, note, g
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            clock.sync()  # a broken context raises here
            note = "no graph: " + short(e)
    t, o = time_eager(clock, fn, R, seconds, nmin, nmax)
    return t, o, one_by_one, note, None


def short(e, n=160):
    text = str(e)
    if not text and e.__traceback__:  # a bare assert: say which
        last = traceback.extract_tb(e.__traceback__)[-1]
        text = f"{os.path.basename(last.filename)}:{last.lineno} {last.line}"
    return re.sub(r"\s+", " ", f"{type(e).__name__}: {text}").strip()[:n]
