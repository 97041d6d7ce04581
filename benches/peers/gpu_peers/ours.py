"""Our own program among the workers: `ours-gpu time`, one process for each preset, asked row by row."""

import queue
import subprocess

from .plan import OURS, case_fields, median, rates
from .pool import end
from .workers import pump

FAILURES = 4

# Seconds of timing for each row: up to 1024 tokens, above.
SECONDS = (0.1, 0.4)


class Ours:
    def __init__(self, run):
        self.run, self.proc, self.preset, self.events = run, None, None, None
        self.failures = 0

    def start(self):
        """Nothing yet: weights are made when a preset's rows begin."""

    def kill(self):
        if self.proc:
            end(self.proc)
        self.proc = self.preset = None

    def rows(self, rows, seconds):
        """A row that fails costs a start, with its weights; FAILURES of them behind each other the chunk's rest."""
        self.failures = 0
        for row in rows:
            if self.run.left() < 4:
                self.run.lost(row, "budget", "not reached")
            elif self.failures >= FAILURES:
                self.run.lost(row, "absent", f"gave up after {FAILURES} failures")
            else:
                for unit in ["layer", "route"] if row["dist"] == "uniform" else ["layer"]:
                    self.unit(row, unit)
        # The next worker needs the memory.
        self.kill()

    def open(self, preset):
        self.kill()
        args = self.run.args
        device = {"cuda": "cuda", "cpu": args.ours_device}[args.device]
        command = [args.ours, "--bench", "time", "--dir", self.run.inputs, "--preset", preset, "--device", device]
        command += ["--graph-tokens", str(args.graph_max)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.run.log}
        self.proc = subprocess.Popen(command, text=True, bufsize=1, process_group=0, **pipes)
        self.preset, self.events = preset, queue.Queue()
        pump(self.proc.stdout, self.events)
        about = self.event()
        if about and about.get("impl") == OURS:
            self.run.saw_env({OURS: about["version"], "our device": about["device"]})
            return True
        return False

    def event(self):
        try:
            return self.events.get(timeout=max(1, min(self.run.args.row_timeout, self.run.left())))
        except queue.Empty:
            return None

    def unit(self, row, unit):
        if self.preset != row["preset"] and not self.open(row["preset"]):
            return self.failed(row, unit, "does not start, see log.txt")
        seconds = SECONDS[row["T"] > 1024] if self.run.args.device == "cuda" else 0
        try:
            self.proc.stdin.write(f"{row['T']} {seconds} {unit} {row['dist']}\n")
            self.proc.stdin.flush()
        except OSError:
            return self.failed(row, unit, "ended, see log.txt")
        answer = self.event()
        if not answer or "laps" not in answer:
            why = "timeout" if answer is None else "error"
            return self.failed(row, unit, f"{why}, see log.txt")
        self.failures = 0
        self.run.row(finished(self.run.shapes[row["preset"]], self.run.case(row), unit, answer))

    def failed(self, row, unit, why):
        self.kill()
        self.failures += 1
        fields = case_fields(self.run.shapes[row["preset"]], self.run.case(row))
        self.run.row(fields | {"peer": OURS, "unit": unit, "status": "error", "note": why})


def finished(shape, case, unit, answer):
    """The row of an answer of `ours-gpu`, which has compared with the oracle before it timed."""
    us = [lap * 1e6 for lap in answer["laps"]]
    row = case_fields(shape, case) | {
        "peer": OURS if unit == "layer" else f"route: {OURS}", "unit": "layer" if unit == "layer" else "route+permute",
        "us": round(median(us), 2), "us_min": round(min(us), 2), "n": len(us), "mode": answer["mode"],
        "relerr": f"{answer['rel_error']:.2e}", "status": "ok",
    }  # fmt: skip
    return row | rates(case, median(us)) if unit == "layer" else row
