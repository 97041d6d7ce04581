"""Runs the same MoE layers here, in torch and in candle, one after the other, and prints the ratios.

    cpu.py run --ours BIN --candle BIN     measures, writes benches/record/<machine>/<date>.csv, prints the table
    cpu.py table FILE.csv                  prints a record's table again

Same weights, same inputs, same threads; outputs are compared. Timed is the layer behind its router: ids and weights of
the chosen experts are given to all. scripts/bench-peers builds everything that this needs.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS = [
    "preset", "dtype", "tokens", "distribution", "impl", "version", "median_us", "min_us", "calls",
    "gb_s", "gflop_s", "of_read", "read_gb_s", "dense_gflop_s", "times_ours", "rel_error", "note",
]  # fmt: skip
OURS = "fused-moe"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--ours", required=True, help="the program of benches/peers/ours.rs")
    run.add_argument("--candle", help="the program of benches/peers/candle; left out without it")
    run.add_argument("--presets", default="qwen3-30b-a3b,deepseek-moe-16b")
    run.add_argument("--dtypes", default="bf16,f32")
    run.add_argument("--tokens", default="1,8,64,512")
    run.add_argument("--distribution", default="uniform", choices=["uniform", "zipf"])
    run.add_argument("--seconds", default="2", help="for each row")
    run.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
    run.add_argument("--machine", default=machine_name(), help="folder of the record")
    run.add_argument("--record", type=Path, default=HERE.parent / "record")
    run.add_argument("--prefix", default="", help="put before every timed program: taskset, numactl, flock, ...")
    run.set_defaults(action=measure)
    table = commands.add_parser("table", help="print a record's table")
    table.add_argument("csv", type=Path)
    table.set_defaults(action=lambda options: print_table(read_record(options.csv)))
    options = parser.parse_args()
    options.action(options)


def measure(options):
    about = describe(options)
    print("\n".join(about), file=sys.stderr)
    path = options.record / options.machine / f"{datetime.date.today().isoformat()}.csv"
    rows = []
    for preset in options.presets.split(","):
        for dtype in options.dtypes.split(","):
            rows += measure_layer(options, preset, dtype)
            # What is measured is on disk, whatever comes after it.
            write_record(path, about, rows)
    print(f"written: {path}", file=sys.stderr)
    print_table(read_record(path))


def write_record(path, about, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.writelines(f"# {line}\n" for line in about)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure_layer(options, preset, dtype):
    """One layer in every program; the ratios are of neighbours in time."""
    with tempfile.TemporaryDirectory() as directory:
        manifest = Path(directory) / "manifest.json"
        ours = [options.ours, "--bench", "--preset", preset, "--dtype", dtype, "--tokens", options.tokens]
        ours += ["--distribution", options.distribution, "--seconds", options.seconds, "--dir", directory]
        rows = program(options, f"{preset} {dtype} fused-moe", ours)
        layer = json.loads(manifest.read_text())
        peers = {"torch": [sys.executable, str(HERE / "torch_layer.py"), str(manifest), options.seconds]}
        if options.candle:
            peers["candle"] = [options.candle, str(manifest), options.seconds]
        for name, command in peers.items():
            rows += program(options, f"{preset} {dtype} {name}", command)
    dense_rate = next(row["dense_rate"] for row in rows if "dense_rate" in row)
    rows = [row for row in rows if "impl" in row]
    by_tokens = {row["tokens"]: row for row in rows if row["impl"] == OURS}
    return [complete(row, by_tokens[row["tokens"]], layer, dense_rate) for row in rows]


def program(options, what, command):
    print(f"{what} ...", file=sys.stderr, flush=True)
    threads = {name: options.threads for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    # Huge pages for the peer's weights where the system grants them on request, as for ours.
    environment = os.environ | threads | {"THP_MEM_ALLOC_ENABLE": "1"}
    command = shlex.split(options.prefix) + command
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{what}: exit status {done.returncode} of {shlex.join(command)}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def complete(row, ours, layer, dense_rate):
    """A row of the record from what a program printed."""
    read = layer["read_bandwidth"]
    row = {"distribution": layer["distribution"], "read_gb_s": f"{read / 1e9:.1f}"} | row
    row["dense_gflop_s"] = f"{dense_rate / 1e9:.0f}"
    if seconds := row.get("median_us", 0) / 1e6:
        row["gb_s"] = f"{ours['bytes'] / seconds / 1e9:.2f}"
        row["gflop_s"] = f"{ours['flops'] / seconds / 1e9:.1f}"
        row["of_read"] = f"{ours['bytes'] / seconds / read:.3f}"
        row["times_ours"] = f"{row['median_us'] / ours['median_us']:.3f}"
        row |= {key: f"{row[key]:.1f}" for key in ("median_us", "min_us")}
    if "rel_error" in row:
        row["rel_error"] = f"{row['rel_error']:.1e}"
    return {key: row.get(key, "") for key in COLUMNS}


def describe(options):
    def output(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=HERE).stdout.strip()
        except OSError:
            return "unknown"

    cpuinfo = Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M).group(1).split())
    known = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve"]
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1)) >> 20
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    dirty = " with changes" if output("git", "status", "--porcelain", "--untracked-files=no") else ""
    return [
        f"cpu: {cpu_model()}, {os.cpu_count()} logical cores, {options.threads} threads used",
        f"isa: {' '.join(flag for flag in known if flag in flags)}",
        f"memory: {memory} GiB, huge pages {huge_pages.read_text().strip() if huge_pages.exists() else 'unknown'}",
        f"system: {platform.system()} {platform.release()}, {output('rustc', '--version')}, python {platform.python_version()}",
        f"commit: {output('git', 'rev-parse', '--short', 'HEAD')}{dirty}",
        f"date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        "timed: experts, combine and shared expert; ids and weights of the chosen experts are given to all",
    ]


def cpu_model():
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return match.group(1) if match else platform.machine()


def machine_name():
    words = re.sub(r"\(R\)|\(TM\)|processor|cpu|@.*", " ", cpu_model(), flags=re.I)
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return f"{slug}-{len(os.sched_getaffinity(0))}-threads"


def read_record(path):
    lines = path.read_text().splitlines()
    about = [line[2:] for line in lines if line.startswith("#")]
    return about, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def print_table(record):
    """Rates with ours as a multiple of each; GB/s of expert weights up to 8 tokens, GFLOP/s above."""
    about, rows = record
    impls = list(dict.fromkeys(row["impl"] for row in rows if row["impl"] != OURS))
    versions = dict.fromkeys(f"{row['impl']} {row['version']}" for row in rows)
    print("\n".join(f"- {line}" for line in about + list(versions)), end="\n\n")
    print("| layer | weights | T | | of read / dense | " + " | ".join(["ours", *impls]) + " |")
    print("|---|---|---|---|---|" + "---|" * (len(impls) + 1))
    cells = {(row["preset"], row["dtype"], row["tokens"], row["impl"]): row for row in rows}
    for row in (row for row in rows if row["impl"] == OURS):
        key = (row["preset"], row["dtype"], row["tokens"])
        decode = int(row["tokens"]) <= 8
        rate, unit = ("gb_s", "GB/s") if decode else ("gflop_s", "GFLOP/s")
        floor = row["read_gb_s"] if decode else row["dense_gflop_s"]
        share = f"{float(row[rate]) / float(floor):.0%} of {floor}"
        peers = [cell(cells.get((*key, impl)), rate) for impl in impls]
        print("| " + " | ".join([*key, unit, share, f"**{row[rate]}**", *peers]) + " |")


def cell(row, rate):
    if not row or not row[rate]:
        return row["note"] if row else ""
    return f"{row[rate]} ({float(row['times_ours']):.2f}×)"


if __name__ == "__main__":
    main()
