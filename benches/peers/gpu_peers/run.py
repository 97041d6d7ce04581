"""One run: plans the rows, hands them to the workers, and writes each result the moment it exists."""

import collections
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import report
from .ours import Ours
from .plan import FIELDS, OURS, case_fields, chunks, key_of, plan_rows
from .pool import Pool
from .unpack import find_cuda_home, unpack
from .workers import Worker

MAIN = Path(__file__).resolve().parent.parent / "gpu.py"


class Run:
    def __init__(self, args, about):
        self.args, self.t0 = args, time.monotonic()
        os.makedirs(args.out, exist_ok=True)
        self.log = open(os.path.join(args.out, "log.txt"), "a", buffering=1)
        results = Path(args.out, "results.csv")
        earlier = rows_of_earlier(results, about)
        self.done = {done for row in earlier if (done := key_of(row))}
        self.csv_file = open(results, "a" if earlier else "w", newline="")
        self.about({"continued": about["date"]} if earlier else about)
        self.csv = csv.DictWriter(self.csv_file, FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
        if not earlier:
            self.csv.writeheader()
        self.missing, self.environ, self.theirs = [], {}, collections.Counter()
        self.ours = collections.Counter(row["status"] for row in earlier if OURS in row["peer"])
        self.work = tempfile.mkdtemp(prefix="moe_peers_")
        self.inputs = os.path.join(self.work, "inputs")
        self.root = unpack(args.peers_dir, self.work)
        self.cuda_home = find_cuda_home()
        self.workers, self.pool = {}, None
        self.draw()

    def draw(self):
        """Shapes and routing, by our own program, for all."""
        args = self.args
        command = [args.ours, "--bench", "inputs", "--dir", self.inputs, "--presets", ",".join(args.presets)]
        command += ["--tokens", ",".join(map(str, args.tokens))]
        command += ["--tiny"] if args.device == "cpu" else ["--memory", str(room(args.memory))]
        subprocess.run(command, check=True, stderr=self.log)
        self.manifest = json.loads(Path(self.inputs, "manifest.json").read_text())
        self.shapes = {shape["preset"]: shape for shape in self.manifest["presets"]}

    def case(self, row):
        names = ("preset", "tokens", "distribution")
        wanted = (row["preset"], row["T"], row["dist"])
        return next(case for case in self.manifest["cases"] if tuple(case[name] for name in names) == wanted)

    def role(self, role, name):
        """The command of a process of ours in Python."""
        command = [sys.executable, str(MAIN), "--role", role, "--name", name, "--inputs", self.inputs]
        return command + ["--peers-dir", self.root, "--graph-max", str(self.args.graph_max)]

    def left(self):
        return self.args.budget_seconds - (time.monotonic() - self.t0)

    def say(self, text):
        line = f"{time.monotonic() - self.t0:6.1f}s {text}"
        print(line, flush=True)
        self.log.write(line + "\n")

    def about(self, facts):
        """Facts of the run, as comments of the CSV."""
        self.csv_file.writelines(f"# {name}: {value}\n" for name, value in facts.items())
        self.csv_file.flush()

    def env(self, name, gpu=True):
        env = dict(os.environ)
        site = os.path.join(self.root, "site")
        env["PYTHONPATH"] = os.pathsep.join(x for x in (site, env.get("PYTHONPATH")) if x)
        env.update(
            PYTHONUNBUFFERED="1", TRITON_CACHE_DIR=os.path.join(self.work, "triton"), TRITON_STORE_BINARY_ONLY="1",
            DG_JIT_CACHE_DIR=os.path.join(self.work, "deep_gemm"), HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
            TOKENIZERS_PARALLELISM="false",
        )  # fmt: skip
        if self.cuda_home:
            env["CUDA_HOME"] = self.cuda_home
        if self.args.device == "cpu":
            env["TRITON_INTERPRET"] = "1"
        if not gpu:
            env["CUDA_VISIBLE_DEVICES"] = ""
        return env

    def saw_env(self, env):
        new = {k: v for k, v in env.items() if v is not None and self.environ.get(k) != v}
        self.environ.update(new)
        self.about(new)

    def row(self, row):
        self.csv.writerow(row)
        self.csv_file.flush()
        (self.ours if OURS in row["peer"] else self.theirs)[row["status"]] += 1
        os.fsync(self.csv_file.fileno())
        what = f"{row['peer']:>17} {row['unit']:<13} {row.get('preset', ''):<17} T={row.get('T', '')!s:<6}"
        what += f"{row.get('dist', ''):<8}"
        if row.get("us"):
            speed = f"{row['tflops']} TFLOP/s {row['gbps']} GB/s" if row.get("tflops") else ""
            self.say(f"{what}{row['us']:>11} us {speed} {row['mode']} {row.get('relerr', '')} {row['status']} "
                     f"{row.get('variant', '')}")  # fmt: skip
        else:
            self.say(f"{what}{row['status']}: {row.get('note', '')}")

    def lost(self, row, status, why):
        """A row that was not measured. What the budget did not reach is counted, not listed."""
        self.missing.append((row, status, why))
        if status in ("timeout", "crash", "absent"):
            fields = case_fields(self.shapes[row["preset"]], self.case(row))
            self.row(fields | {"peer": row["impl"], "unit": "", "status": status, "note": why})

    def main(self):
        args = self.args
        rows = [row for row in plan_rows(self.manifest["cases"], args.impls) if key_of(row) not in self.done]
        self.say(f"{len(rows)} rows planned, {len(self.done)} there already, budget {args.budget_seconds:.0f} s")
        self.say(f"peers from {args.peers_dir}, CUDA toolkit {'found' if self.cuda_home else 'NOT FOUND'}")
        jobs = args.compile_jobs if args.compile_jobs >= 0 else max(0, min(11, (os.cpu_count() or 1) - 4))
        if jobs and args.device == "cuda":
            self.pool = Pool(self, rows, max(1, jobs - 5), min(5, jobs - 1))
        for name in ["ceilings"] + sorted({row["worker"] for row in rows}):
            self.workers[name] = Ours(self) if name == "ours" else Worker(self, name)
            if args.device == "cuda":
                self.workers[name].start()
        self.ceilings()
        todo = list(chunks(rows))
        while todo and self.left() > 6:
            ready = (chunk for chunk in todo if chunk[0] == todo[0][0] and self.is_ready(chunk))
            chunk = next(ready, None)
            if chunk is None:
                time.sleep(0.2)
                continue
            todo.remove(chunk)
            _, name, _, part = chunk
            self.workers[name].rows(part, self.left())
        for row in (row for chunk in todo for row in chunk[3]):
            self.lost(row, "budget", "not reached")
        if self.left() > 3:
            self.ceilings()

    def good(self):
        """Whether our own rows were measured, without a failure; of a try on the CPU, nobody may have failed."""
        tried = self.theirs if self.args.device == "cpu" else {}
        failed = self.ours.keys() - {"ok"} | tried.keys() & {"WRONG", "error", "crash", "timeout", "oom"}
        return bool(self.ours.get("ok")) and not failed

    def is_ready(self, chunk):
        level, name, preset, _ = chunk
        return self.pool is None or self.pool.ready((name, preset, level))

    def ceilings(self):
        """At the start and at the end: the better of both counts."""
        worker = self.workers["ceilings"]
        if not worker.ready(self.left()):
            return
        worker.command(cmd="ceilings", seconds=30)
        while (event := worker.event(min(40, max(1, self.left())))) and event["ev"] not in ("eof", "end"):
            if event["ev"] == "row":
                self.row(event["data"])

    def finish(self):
        for worker in self.workers.values():
            worker.kill()
        if self.pool:
            self.pool.kill()
        budget = sum(status == "budget" for _, status, _ in self.missing)
        self.about({"rows not reached within the budget": budget})
        self.csv_file.close()
        report.write(Path(self.args.out))
        self.say(f"written: {self.args.out}/results.csv, table.md, roofline.svg, log.txt")
        shutil.rmtree(self.work, ignore_errors=True)


def rows_of_earlier(results, about):
    """Rows that are there already, for the run to go on behind them; those of another device or build end it."""
    if not results.exists():
        return []
    record = report.read(results)
    other = [name for name in ("device", "driver", "commit", "tiles") if record.about.get(name) != about.get(name)]
    if record.rows and other:
        sys.exit(f"{results} is of another {', '.join(other)}: name another --out")
    return record.rows


def room(memory):
    """Bytes for one copy of a layer's weights: what a card has, less workspaces, peers' scratch and contexts."""
    return max(1 << 30, min(memory, 70 << 30) - (20 << 30))
