"""Compiles the peers' kernels on other cores, ahead of the rows that need them."""

import collections
import contextlib
import json
import os
import signal
import subprocess
import threading

from .plan import TOKENS, TRITON_WORKERS, WORKERS, level_of

# Seconds.
COMPILE_TIMEOUT = 120


def kill_group(proc):
    if proc.poll() is None:
        try:
            os.killpg(proc.pid, signal.SIGKILL)
        except OSError:
            pass


def end(proc):
    """Kills a program that is asked through its standard input; its output is for who reads it to close."""
    kill_group(proc)
    proc.wait()
    with contextlib.suppress(OSError):
        proc.stdin.close()


def ask(proc, row):
    """The answer to a row; None where the program ends, or is ended because it takes too long."""
    watchdog = threading.Timer(COMPILE_TIMEOUT, kill_group, (proc,))
    watchdog.start()
    try:
        proc.stdin.write(json.dumps(row) + "\n")
        proc.stdin.flush()
        line = proc.stdout.readline()
        return json.loads(line) if line else None
    finally:
        watchdog.cancel()


class Pool:
    """Most important first. Triton compiles without a GPU, DeepGEMM by launches with nothing to do."""

    def __init__(self, run, rows, triton_jobs, dg_jobs):
        self.run, self.lock, self.procs, self.stop = run, threading.Lock(), set(), False
        self.todo = {"compile": [], "dgwarm": []}
        self.pending = collections.Counter()
        self.good = collections.Counter()
        for row in sorted(rows, key=lambda r: (level_of(r), TOKENS.get(r["T"], 1), WORKERS.index(r["worker"]))):
            role = "dgwarm" if row["worker"] == "deepgemm" else "compile" if row["worker"] in TRITON_WORKERS else None
            if role == "compile" and row["dist"] != "uniform":
                continue  # the distribution changes no Triton signature
            if role and (triton_jobs if role == "compile" else dg_jobs):
                self.todo[role].append(row)
                self.pending[self.key(row)] += 1
        self.threads = [
            threading.Thread(target=self.work, args=(role,), daemon=True)
            for role, n in (("compile", triton_jobs), ("dgwarm", dg_jobs))
            for _ in range(n)
            if self.todo[role]
        ]
        for t in self.threads:
            t.start()

    @staticmethod
    def key(row):
        return row["worker"], row["preset"], level_of(row)

    def ready(self, key):
        with self.lock:
            return self.pending[key] <= 0

    def work(self, role):
        proc = None
        while not self.stop:
            with self.lock:
                row = self.todo[role].pop(0) if self.todo[role] else None
            if row is None:
                break
            reply = None
            try:
                proc = proc or self.start(role, row)
                reply = ask(proc, row)
            except (OSError, ValueError):
                pass
            self.answered(role, row, reply)
            if reply is None and proc:
                end(proc)
                proc.stdout.close()
                proc = None
        if proc:
            proc.stdin.close()
            proc.wait()
            proc.stdout.close()

    def start(self, role, row):
        device = "cuda" if role == "dgwarm" else "meta"
        command = self.run.role(role, row["worker"]) + ["--device", device]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.run.log}
        env = self.run.env(row["worker"], gpu=role == "dgwarm")
        proc = subprocess.Popen(command, text=True, bufsize=1, env=env, process_group=0, **pipes)
        self.procs.add(proc)
        return proc

    def answered(self, role, row, reply):
        with self.lock:
            self.pending[self.key(row)] -= 1
            self.good[row["worker"]] += reply["good"] if reply else 0
        what = f"[{role}] {row['impl']} {row['preset']} T={row['T']} {row['dist']}"
        if reply is None:
            self.run.log.write(f"{what}: died or timed out\n")
        else:
            failed = "".join(f"{what}: FAILED {bad}\n" for bad in reply["bad"])
            self.run.log.write(f"{what}: {reply['good']} compiled in {reply['seconds']} s\n{failed}")

    def kill(self):
        self.stop = True
        for p in self.procs:
            kill_group(p)
