"""Runs the same MoE layers here, in torch and in candle, a few laps of each in turn, and prints the ratios.

    cpu.py run --ours BIN --candle BIN     measures, writes benches/record/<machine>/<date>.csv, prints the table
    cpu.py table FILE.csv                  prints a record's table again

Same weights, same inputs, same threads; outputs are compared. Timed is the layer behind its router: ids and weights of
the chosen experts are given to all. Beside the layers stands what only reads the weights that they need: in turn with
the others, because on a machine that is shared memory is at times half as fast as at others.
scripts/bench-peers builds everything that this needs.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS = [
    "preset", "dtype", "tokens", "distribution", "impl", "version", "median_us", "min_us", "calls",
    "gb_s", "gflop_s", "of_read", "dense_gflop_s", "times_ours", "rel_error", "note",
]  # fmt: skip
OURS = "fused-moe"
READ = "plain read"
ROUNDS = 9


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
    run.add_argument("--seconds", default="2", help="for each row, over all rounds")
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
    """One layer in every program."""
    print(f"{preset} {dtype} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        manifest = Path(directory) / "manifest.json"
        ours = [options.ours, "--bench", "--preset", preset, "--dtype", dtype, "--tokens", options.tokens]
        ours += ["--distribution", options.distribution, "--dir", directory]
        programs = [Program(options, ours)]
        programs += [Program(options, [sys.executable, str(HERE / "torch_layer.py"), str(manifest)])]
        if options.candle:
            programs += [Program(options, [options.candle, str(manifest)])]
        layer = json.loads(manifest.read_text())
        layer["dense_rate"] = next(p.about["dense_rate"] for p in programs if "dense_rate" in p.about)
        rows = [row for case in layer["cases"] for row in measure_case(options, programs, layer, case)]
        for program in programs:
            program.end()
        return rows


def measure_case(options, programs, layer, case):
    """One number of tokens: in each round a share of the time for every implementation that has some left."""
    seconds = float(options.seconds)
    impls = [(program, impl) for program in programs for impl in program.about["impls"]]
    answers = {impl: {"rounds": {}, "calls": 0, "seconds": 0.0} for _, impl in impls}
    for round in range(ROUNDS):
        for program, impl in impls:
            answer = answers[impl]
            if answer["seconds"] < seconds and "note" not in answer:
                start = time.monotonic()
                new = program.ask(case["tokens"], seconds / ROUNDS, impl)
                if laps := new.pop("laps", None):
                    answer["rounds"][round] = laps
                    answer["calls"] += new.pop("calls")
                answer["seconds"] += time.monotonic() - start
                answer |= new
    about = {"preset": layer["preset"], "dtype": layer["dtype"], "tokens": case["tokens"]}
    about |= {"distribution": layer["distribution"], "dense_gflop_s": f"{layer['dense_rate'] / 1e9:.0f}"}
    return [
        about | {"impl": impl, "version": program.about["impls"][impl]} | complete(answers[impl], answers, case)
        for program, impl in impls
    ]


class Program:
    """One that has set up its layers, and times laps of them when asked."""

    def __init__(self, options, command):
        threads = {name: options.threads for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # Huge pages for the peer's weights where the system grants them on request, as ours ask for them.
        environment = os.environ | threads | {"THP_MEM_ALLOC_ENABLE": "1"}
        self.command = shlex.split(options.prefix) + command
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self.command, env=environment, **pipes)
        self.about = self.answer()

    def ask(self, tokens, seconds, impl):
        # OpenMP's threads go on spinning for a while after their work, at the next one's cost.
        time.sleep(0.3)
        self.process.stdin.write(f"{tokens} {seconds} {impl}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"exit status {self.process.wait()} of {shlex.join(self.command)}")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def complete(answer, answers, case):
    """The figures of one implementation."""
    row = {"note": answer.get("note", ""), "calls": answer["calls"]}
    if laps := [lap for round in answer["rounds"].values() for lap in round]:
        seconds = statistics.median(laps)
        row["median_us"], row["min_us"] = (f"{x * 1e6:.1f}" for x in (seconds, min(laps)))
        row["gb_s"] = f"{case['bytes'] / seconds / 1e9:.2f}"
        row["gflop_s"] = f"{case['flops'] / seconds / 1e9:.1f}"
        row["of_read"] = f"{ratio(answers[READ], answer):.3f}"
        row["times_ours"] = f"{ratio(answer, answers[OURS]):.3f}"
    if "rel_error" in answer:
        row["rel_error"] = f"{answer['rel_error']:.1e}"
    return row


def ratio(one, other):
    """How many times as long one takes as the other: the median over the rounds that have both."""
    rounds = one["rounds"].keys() & other["rounds"].keys()
    return statistics.median(statistics.median(one["rounds"][r]) / statistics.median(other["rounds"][r]) for r in rounds)


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
    impls = list(dict.fromkeys(row["impl"] for row in rows if row["impl"] not in (OURS, READ)))
    versions = dict.fromkeys(f"{row['impl']} {row['version']}" for row in rows)
    print("\n".join(f"- {line}" for line in about + list(versions)), end="\n\n")
    print("| layer | weights | T | | floor | ours | of it | " + " | ".join(impls) + " |")
    print("|---|---|---|---|---|---|---|" + "---|" * len(impls))
    cells = {(row["preset"], row["dtype"], row["tokens"], row["impl"]): row for row in rows}
    for row in (row for row in rows if row["impl"] == OURS):
        key = (row["preset"], row["dtype"], row["tokens"])
        decode = int(row["tokens"]) <= 8
        rate, unit = ("gb_s", "GB/s") if decode else ("gflop_s", "GFLOP/s")
        floor = cells[(*key, READ)]["gb_s"] if decode else row["dense_gflop_s"]
        share = f"{float(row['of_read']) if decode else float(row[rate]) / float(floor):.0%}"
        peers = [cell(cells.get((*key, impl)), rate) for impl in impls]
        print("| " + " | ".join([*key, unit, floor, f"**{row[rate]}**", share, *peers]) + " |")


def cell(row, rate):
    if not row or not row[rate]:
        return row["note"] if row else ""
    return f"{row[rate]} ({float(row['times_ours']):.2f}×)"


if __name__ == "__main__":
    main()
