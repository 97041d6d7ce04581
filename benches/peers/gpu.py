#!/usr/bin/env python3
"""Times this crate's layer on one NVIDIA GPU beside other projects' kernels and the ceilings of the same card.

    gpu.py --ours BIN --peers-dir DIR --out OUT    measures: results.csv, table.md, roofline.svg; again: goes on
    gpu.py --report OUT                            writes table and plot again
    gpu.py --record OUT                            keeps them under benches/record/<device>/<date>/
    gpu.py --device cpu --ours BIN --out OUT       tries everything on tiny shapes, without a GPU

BIN is the bench program `ours-gpu`; DIR is what `gpu_peers/fetch` brought, without which only torch and transformers
run beside ours. Every program has the same weights, hidden states, ids and weights, none of them zeros, and its output
is compared with a reference: ours with the f64 oracle before it is timed.

Units: layer = from the chosen experts' ids on (sort, gather, both products, SwiGLU, combination); experts = the same
with the peer's plan given; gemm = the two grouped products alone; route, align and both together = what
is before. Cold: batches over copies of the weights take turns, so no weight is read from L2 twice; up to
--graph-max tokens all of them are one CUDA graph, for everybody.
"""

import argparse
import datetime
import hashlib
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_peers import plan, report  # noqa: E402

SMOKE = {"presets": "qwen3-30b-a3b,deepseek-v3", "tokens": "1,5,40"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", help="the program ours-gpu")
    parser.add_argument("--ours-device", default="ptx-vm-sm90", help="with --device cpu; ptx-vm or cpu, too")
    parser.add_argument("--peers-dir", default=".peers", help="what gpu_peers/fetch brought")
    parser.add_argument("--out", default="gpu-results")
    parser.add_argument("--report", type=Path, metavar="OUT")
    parser.add_argument("--record", type=Path, metavar="OUT")
    parser.add_argument("--budget-seconds", type=float, default=480)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu", "meta"])
    parser.add_argument("--presets", help="default: all, or two in their tiny form on the CPU")
    parser.add_argument("--tokens", help="numbers of tokens")
    parser.add_argument("--impls", default=",".join(plan.IMPLS))
    parser.add_argument("--row-timeout", type=float, default=45)
    parser.add_argument("--graph-max", type=int, default=1024, help="most tokens that are timed in a CUDA graph")
    parser.add_argument("--compile-jobs", type=int, default=-1, help="processes that compile ahead; 0: none")
    for hidden in ("--role", "--name", "--inputs"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--safe", action="store_true", help=argparse.SUPPRESS)
    return parser, parser.parse_args()


def completed(parser, args):
    """The options with their defaults, or the end where they name what is not there."""
    smoke = args.device == "cpu"
    if not args.ours or not os.access(args.ours, os.X_OK):
        parser.error(
            f"--ours: {args.ours} is no program; `cargo bench --features cuda --no-run --bench ours-gpu` builds it"
        )
    args.ours = os.path.abspath(args.ours)
    args.presets = (args.presets or (SMOKE["presets"] if smoke else ",".join(plan.PRESETS))).split(",")
    tokens = args.tokens or (SMOKE["tokens"] if smoke else ",".join(map(str, plan.TOKENS)))
    args.tokens, args.impls = sorted(map(int, tokens.split(","))), args.impls.split(",")
    if unknown := set(args.impls) - set(plan.IMPLS):
        parser.error(f"--impls: unknown: {', '.join(sorted(unknown))}")
    return args


def about(args):
    """The device and what else a reader has to know. Ends the program where there is no GPU and one is wanted."""
    facts = {"date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC", "commit": commit()}
    facts["tiles"] = tiles()
    if args.device == "cpu":
        args.memory = 0
        return {"device": f"none: {platform.machine()}, tiny shapes, times mean nothing"} | facts
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
        "--format=csv,noheader,nounits",
    ]
    try:
        line = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        sys.exit(f"no NVIDIA GPU here: {' '.join(query[:1])}: {error}")
    name, driver, memory, clock, power = (word.strip() for word in line.split(","))
    args.memory = int(memory) << 20
    facts |= {"driver": driver, "memory": f"{memory} MiB", "clock": f"{clock} MHz at most", "power limit": f"{power} W"}
    return {"device": name} | facts


def tiles():
    """Which table our kernels choose by: a run does not go on under another."""
    path = os.environ.get("FUSED_MOE_CUDA_TILES")
    return f"sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}" if path else "those of the build"


def commit():
    """Of the bundle, or of the checkout."""
    here = Path(__file__).resolve().parent
    for file in (here / "COMMIT", here.parent / "COMMIT"):
        if file.exists():
            return file.read_text().strip()[:12]
    try:
        return subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        return "unknown"


def main():
    parser, args = arguments()
    if args.role:
        if args.role == "worker":
            from gpu_peers.worker import worker_main as role
        else:
            from gpu_peers import compile_ahead

            role = {"compile": compile_ahead.compile_main, "dgwarm": compile_ahead.dgwarm_main}[args.role]
        return role(args)
    if args.report or args.record:
        return report.write(args.report) if args.report else print(report.keep(args.record))
    from gpu_peers.run import Run

    facts = about(completed(parser, args))
    run = Run(args, facts)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run.main()
    finally:
        run.finish()
    return 0 if run.good() else 1


if __name__ == "__main__":
    sys.exit(main())
