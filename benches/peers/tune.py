#!/usr/bin/env python3
"""Finds the fastest tile of each class of products on this GPU: the table of src/backend/cuda/tiles.json.

    tune.py --ours BIN --out tiles.json

BIN is the bench program `ours-gpu`. A whole layer is timed, checked against the oracle first, with one tile forced
upon one of its two products at a time, and beside it the layer as the rules choose; what is not faster by more than
MARGIN is left to the rules. A class is a range of rows per expert, of N and of K.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_peers.plan import PRESETS, median  # noqa: E402

# A tile has to be so much faster than the rules' to be written down: less is noise.
MARGIN = 0.03
# N and K of a class reach from a shape to its neighbours: half a power of two on either side.
REACH = math.sqrt(2)
TOKENS = [16, 64, 256, 1024, 4096, 8192, 32768]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="the program ours-gpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "ptx-vm", "ptx-vm-sm90"], help="ptx-vm: to try it")
    parser.add_argument("--presets", default=",".join(PRESETS))
    options = parser.parse_args()
    tiny = options.device != "cuda"
    presets = ["mixtral-8x7b"] if tiny else options.presets.split(",")
    tokens = [40] if tiny else TOKENS
    with tempfile.TemporaryDirectory() as folder:
        inputs = [options.ours, "--bench", "inputs", "--dir", folder, "--presets", ",".join(presets)]
        inputs += ["--tokens", ",".join(map(str, tokens))] + (["--tiny"] if tiny else [])
        subprocess.run(inputs, check=True)
        device = json.loads(output(options.ours, "--bench", "tiles", "--device", options.device))
        manifest = json.loads(Path(folder, "manifest.json").read_text())
        measured = [
            m for shape in manifest["presets"] for m in measure(options, folder, shape, device["tiles"], tokens)
        ]
    table = {"measured": device["device"], "tiles": entries(device["capability"], measured)}
    options.out.write_text(written(table))
    print(f"{len(table['tiles'])} classes where another tile is faster: {options.out}")


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def products(shape):
    """N and K of both."""
    h, i = shape["hidden_size"], shape["intermediate_size"]
    return [(2 * i, h), (h, i)]


def measure(options, folder, shape, tiles, tokens):
    """[(product, rows per expert, {tile or None: µs})], None being the rules' choice."""
    seconds = 0.1 if options.device == "cuda" else 0
    rules = timed(options, folder, shape["preset"], [], tokens, seconds)
    found = []
    for n, k in products(shape):
        times = {}
        for tile in tiles:
            forced = [{"n": [n, n], "k": [k, k], "tile": tile}]
            times[tuple(tile)] = timed(options, folder, shape["preset"], forced, tokens, seconds)
        for t in tokens:
            rows = -(-t * shape["top_k"] // min(shape["num_experts"], t * shape["top_k"]))
            found.append(((n, k), rows, {None: rules[t]} | {tile: us[t] for tile, us in times.items() if t in us}))
    return found


def timed(options, folder, preset, entries, tokens, seconds):
    """Microseconds of the layer for each number of tokens under a table."""
    table = Path(folder, "tiles.json")
    table.write_text(json.dumps({"tiles": entries}))
    command = [options.ours, "--bench", "time", "--dir", folder, "--preset", preset, "--device", options.device]
    asked = "".join(f"{t} {seconds} layer uniform\n" for t in tokens)
    environment = os.environ | {"FUSED_MOE_CUDA_TILES": str(table)}
    run = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, env=environment)
    answers = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")][1:]
    print(f"{preset} {entries}: {len(answers)} of {len(tokens)} timed", flush=True)
    if run.returncode and not entries:
        raise SystemExit(f"exit status {run.returncode} under the rules alone")
    return {t: median(answer["laps"]) * 1e6 for t, answer in zip(tokens, answers)}


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
