"""How time passes: on a GPU by its own events, and by a stand-in where there is none, which takes the same steps."""

import gc
import time

import torch


class Gpu:
    """Events, and CUDA graphs."""

    modes = ("graph", "eager")

    def start(self):
        """Raises where there is no device."""
        torch.cuda.init()
        torch.backends.cuda.matmul.allow_tf32 = False

    def facts(self):
        p = torch.cuda.get_device_properties(0)
        return dict(
            gpu=p.name, sms=p.multi_processor_count, l2_mb=round(getattr(p, "L2_cache_size", 0) / 1e6, 1),
            memory_gib=round(p.total_memory / 2**30, 1), cuda=torch.version.cuda,
        )  # fmt: skip

    def sync(self):
        torch.cuda.synchronize()

    def free(self):
        gc.collect()
        torch.cuda.empty_cache()

    def calls(self, fn, n):
        """Microseconds of n calls, each between its own two events; the host runs ahead of the device."""
        ev = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
        torch.cuda._sleep(1_000_000)
        for i, (a, b) in enumerate(ev):
            a.record()
            fn(i)
            b.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e3 for a, b in ev]

    def capture(self, fn, R):
        """All R calls in one graph: the graph, whose replay() writes the outputs again, and the outputs."""
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
        return graph, outs


class Host:
    """Without a GPU: a graph is its calls once more. Times mean nothing."""

    modes = ("cpu graph", "cpu")

    def start(self):
        torch.set_num_threads(min(4, torch.get_num_threads()))

    def facts(self):
        return {}

    def sync(self):
        pass

    def free(self):
        gc.collect()

    def calls(self, fn, _):
        """One is enough to have taken the step."""
        start = time.perf_counter()
        fn(0)
        return [(time.perf_counter() - start) * 1e6]

    def capture(self, fn, R):
        outs = [fn(r) for r in range(R)]
        return Again(fn, outs), outs


class Again:
    def __init__(self, fn, outs):
        self.fn, self.outs = fn, outs

    def replay(self):
        for r, out in enumerate(self.outs):
            new = self.fn(r)
            for old, value in zip(tensors(out), tensors(new)):
                old.copy_(value)


def tensors(out):
    """Of what a unit of a peer returns."""
    return [out] if torch.is_tensor(out) else list(out) if isinstance(out, tuple) else []
