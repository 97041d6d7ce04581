#!/usr/bin/env python3
"""Finds the fastest tile of each class of products on this GPU: the table of src/backend/cuda/tiles.json.

    tune.py --ours BIN --out tiles.json

BIN is the bench program `ours-gpu`, which also says which tiles there are. A whole layer is timed, checked against the
oracle first, with one tile forced upon one of its two products at a time, and beside it the layer as the rules choose;
what is not faster by more than MARGIN is left to the rules. A class is a range of rows per expert, of N and of K. The
table is written behind each preset, so that a run which ends early has the first ones.
"""

import argparse
import itertools
import json
import math
import queue
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_peers.plan import PRESETS, median  # noqa: E402
from gpu_peers.pool import end  # noqa: E402
from gpu_peers.workers import pump  # noqa: E402

# A tile has to be so much faster than the rules' to be written down: less is noise.
MARGIN = 0.03
# N and K of a class reach from a shape to its neighbours: half a power of two on either side.
REACH = math.sqrt(2)
TOKENS = [16, 64, 256, 1024, 4096, 8192, 32768]
# Seconds that a program may take to start, with its weights, and to answer.
PATIENCE = 90


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="the program ours-gpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "ptx-vm", "ptx-vm-sm90"], help="ptx-vm: to try it")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--tiny", action="store_true", help="tiny forms of the presets")
    parser.add_argument("--budget-seconds", type=float, default=480)
    return parser.parse_args()


def main():
    options = arguments()
    end = time.monotonic() + options.budget_seconds
    presets, tokens = options.presets.split(","), [int(t) for t in options.tokens.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        inputs = [options.ours, "--bench", "inputs", "--dir", folder, "--presets", options.presets]
        inputs += ["--tokens", options.tokens] + (["--tiny"] if options.tiny else [])
        subprocess.run(inputs, check=True)
        device = json.loads(output(options.ours, "--bench", "tiles", "--device", options.device))
        manifest = json.loads(Path(folder, "manifest.json").read_text())
        measured = []
        for preset in presets:
            if time.monotonic() > end:
                print(f"the time is up before {preset}")
                break
            shape = next(shape for shape in manifest["presets"] if shape["preset"] == preset)
            with Program(options, folder, preset) as program:
                measured += measure(program, shape, device["tiles"], tokens, lambda: end - time.monotonic())
            table = {"measured": device["device"], "tiles": entries(device["capability"], measured)}
            options.out.write_text(written(table))
    if not measured:
        raise SystemExit("nothing was measured")
    print(f"{len(table['tiles'])} classes where another tile is faster: {options.out}")


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


class Program:
    """`ours-gpu time` for one preset; starts again behind a tile that ends it."""

    def __init__(self, options, folder, preset):
        self.command = [options.ours, "--bench", "time", "--dir", folder]
        self.command += ["--preset", preset, "--device", options.device]
        self.preset, self.seconds, self.proc = preset, 0.1 if options.device == "cuda" else 0, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        if self.proc:
            end(self.proc)
        self.proc = None

    def start(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.proc = subprocess.Popen(self.command, text=True, bufsize=1, process_group=0, **pipes)
        self.events = queue.Queue()
        pump(self.proc.stdout, self.events)
        return "impl" in self.event()

    def event(self):
        try:
            return self.events.get(timeout=PATIENCE)
        except queue.Empty:
            return {"ev": "timeout"}

    def ask(self, tokens, table):
        """Microseconds of the layer under a table; None where it is wrong, or ends the program."""
        if not self.proc and not self.start():
            raise SystemExit(f"{self.preset}: the program does not start")
        try:
            self.proc.stdin.write(f"{tokens} {self.seconds} layer uniform {json.dumps({'tiles': table})}\n")
            self.proc.stdin.flush()
            answer = self.event()
        except OSError:
            answer = {}
        if "laps" in answer:
            return median(answer["laps"]) * 1e6
        print(f"{self.preset} T={tokens} {table}: failed", flush=True)
        self.kill()
        return None


def products(shape):
    """N and K of both."""
    h, i = shape["hidden_size"], shape["intermediate_size"]
    return [(2 * i, h), (h, i)]


def measure(program, shape, tiles, tokens, left):
    """[(product, rows per expert, {tile or None: µs})], None being the rules' choice, until the time is up."""
    found = []
    for t in tokens:
        before = program.ask(t, [])
        if before is None:
            raise SystemExit(f"{program.preset}: T={t} fails under the rules alone")
        times = {product: {} for product in products(shape)}
        for (n, k), tile in itertools.product(times, tiles):
            us = program.ask(t, [{"n": [n, n], "k": [k, k], "tile": tile}]) if left() > 0 else None
            if us is not None:
                times[n, k][tuple(tile)] = us
        # Before and behind: what the card's clock did in between is not a tile's merit.
        rules = min(before, program.ask(t, []) or before)
        rows = -(-t * shape["top_k"] // min(shape["num_experts"], t * shape["top_k"]))
        found += [(product, rows, {None: rules} | us) for product, us in times.items()]
        best = {product: min(us, key=us.get) for product, us in times.items() if us}
        print(f"{program.preset} T={t}: rules {rules:.1f} µs, " + ", ".join(
            f"{n} x {k}: {tile} {times[n, k][tile]:.1f} µs" for (n, k), tile in best.items()), flush=True)  # fmt: skip
        if left() <= 0:
            break
    return found


def winners(measured):
    """{product: [(rows per expert, tile or None)]}, ascending; None where the rules are as fast."""
    found = {}
    for product, rows, times in measured:
        tile = min(times, key=times.get)
        faster = tile is not None and times[tile] < times[None] * (1 - MARGIN)
        found.setdefault(product, {})[rows] = tile if faster else None
    return {product: sorted(by_rows.items()) for product, by_rows in found.items()}


def entries(capability, measured):
    """The table: neighbours along the rows with the same tile are one range, which ends half way to the next."""
    table, won = [], winners(measured)
    for product, line in sorted(won.items()):
        n, k = classes(product, won)
        for first, last, tile in runs([tile for _, tile in line]):
            if tile is None:
                continue
            low = 0 if first == 0 else between(line[first - 1][0], line[first][0]) + 1
            high = 2**32 - 1 if last == len(line) - 1 else between(line[last][0], line[last + 1][0])
            rows = [low, high]
            table.append({"capability": capability, "rows_per_expert": rows, "n": n, "k": k, "tile": list(tile)})
    return table


def classes(product, all_products):
    """Ranges of N and K around a product; only itself where another measured one would be among them."""
    ranges = [[int(size / REACH) + 1, int(size * REACH)] for size in product]
    inside = [p for p in all_products if all(low <= size <= high for size, (low, high) in zip(p, ranges))]
    return ranges if inside == [product] else [[size, size] for size in product]


def runs(values):
    """(first, last, value) of each run of equal values."""
    found = []
    for i, value in enumerate(values):
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], i, value)
        else:
            found.append((i, i, value))
    return found


def between(a, b):
    return int(math.sqrt(a * b))


def written(table):
    """One entry a line."""
    lines = ",\n".join("    " + json.dumps(entry) for entry in table["tiles"])
    tiles = f"[\n{lines}\n  ]" if lines else "[]"
    return f'{{\n  "measured": {json.dumps(table["measured"])},\n  "tiles": {tiles}\n}}\n'


if __name__ == "__main__":
    main()
