"""What the device can do, in the same run: the dense rate that prefill is measured by, the bandwidth of decode."""

import torch

from .plan import median
from .timing import short


def ceilings(ctx, emit):
    """Rows of both."""
    clock, big = ctx.clock, not ctx.tiny

    def put(name, fn, flops=0, nbytes=0, note=""):
        for i in range(3):
            fn(i)
        clock.sync()
        times = clock.calls(fn, 25)
        us = median(times)
        emit(
            {},
            dict(
                peer="ceiling",
                unit=name,
                us=round(us, 2),
                us_min=round(min(times), 2),
                n=len(times),
                mode=clock.modes[1],
                tflops=round(flops / us / 1e6, 1) if flops else "",
                gbps=round(nbytes / us / 1e3, 1) if nbytes else "",
                status="ok",
                note=note,
            ),
        )

    def dense():
        n = 8192 if big else 256
        a, b = (torch.randn((n, n), device=ctx.dev, dtype=torch.bfloat16) for _ in range(2))
        c = torch.empty_like(a)
        put(
            f"dense bf16 {n}^3", lambda i: torch.matmul(a, b.T, out=c), flops=2 * n**3, note="torch.matmul, random data"
        )

    def copy():
        n = (4 << 30) if big else 1 << 20
        a = torch.randint(0, 255, (n,), dtype=torch.uint8, device=ctx.dev)
        b = torch.empty_like(a)
        put("device copy", lambda i: b.copy_(a), nbytes=2 * n, note=f"bytes read + written, {n / 2**30:.3g} GiB")

    for f in (dense, copy):
        try:
            f()
        except Exception as e:
            emit({}, dict(peer="ceiling", unit=f.__name__, status="error", note=short(e)))
        clock.free()
