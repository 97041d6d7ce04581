"""The parent's side of the workers: a crash or a hang costs one row, not the run."""

import json
import queue
import subprocess
import threading

from .pool import end


def pump(stream, events):
    """Puts each JSON line of a program into a queue, and `eof` behind the last."""

    def run():
        with stream:
            for line in stream:
                try:
                    events.put(json.loads(line))
                except ValueError:
                    pass
        events.put({"ev": "eof"})

    threading.Thread(target=run, daemon=True).start()


class Worker:
    """One peer's subprocess and what is known of it."""

    def __init__(self, run, name):
        self.run, self.name = run, name
        self.starts, self.state, self.why, self.proc = 0, "new", "", None
        self.q = queue.Queue()

    def start(self):
        self.starts += 1
        cmd = self.run.role("worker", self.name) + ["--device", self.run.args.device]
        if self.starts > 1:
            cmd.append("--safe")
        self.q = q = queue.Queue()
        self.proc = subprocess.Popen(
            cmd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.run.log,
            text=True,
            bufsize=1,
            env=self.run.env(self.name),
            process_group=0,
        )
        pump(self.proc.stdout, q)
        self.state = "starting"

    def kill(self):
        if self.proc:
            end(self.proc)

    def event(self, timeout):
        try:
            return self.q.get(timeout=max(0.01, timeout))
        except queue.Empty:
            return None

    def ready(self, seconds):
        """Wait for the import and setup of this peer."""
        if self.state == "new":
            self.start()
        if self.state == "starting":
            ev = self.event(min(seconds, 120))
            if ev and ev["ev"] == "ready":
                self.state = "up" if ev["available"] else "absent"
                self.why = ev["why"]
                self.run.saw_env(ev["env"])
                self.run.say(
                    f"{self.name}: {'ready' if ev['available'] else 'NOT AVAILABLE: ' + ev['why']} {ev['note']}"
                )
            else:
                code = "timeout" if ev is None else f"exit {self.proc.wait()}"
                self.kill()
                self.state, self.why = "absent", "start: " + code
                self.run.say(f"{self.name}: NOT AVAILABLE: {self.why} (see log.txt)")
        return self.state == "up"

    def command(self, **cmd):
        try:
            self.proc.stdin.write(json.dumps(cmd) + "\n")
            self.proc.stdin.flush()
        except OSError:
            pass

    def rows(self, rows, seconds):
        """Run rows in order; a crash or a hang costs one row and one restart (two at most)."""
        todo = list(rows)
        while todo and self.run.left() > 4:
            if not self.ready(self.run.left()):
                for row in todo:
                    self.run.lost(row, "absent", self.why)
                return
            self.command(cmd="rows", rows=todo, seconds=min(seconds, self.run.left() - 2))
            current, crashed = None, ""
            while True:
                ev = self.event(min(self.run.args.row_timeout, self.run.left()))
                if ev is None:
                    if self.run.left() <= 1:
                        return
                    crashed = "timeout"
                    break
                if ev["ev"] == "row":
                    self.run.row(ev["data"])
                elif ev["ev"] == "start":
                    current = ev["row"]
                elif ev["ev"] == "done":
                    todo = [r for r in todo if r["id"] != ev["row"]]
                    current = None
                elif ev["ev"] == "end":
                    for row in todo:
                        self.run.lost(row, "budget", "not reached")
                    return
                elif ev["ev"] == "eof":
                    crashed = f"crash (exit {self.proc.wait()})"
                    break
            self.kill()
            bad = [r for r in todo if r["id"] == current]
            todo = [r for r in todo if r["id"] != current]
            for row in bad:
                self.run.lost(row, crashed.split()[0], crashed + ", see log.txt")
            self.run.say(f"{self.name}: {crashed} in {[(r['preset'], r['T'], r['impl']) for r in bad]}")
            if self.starts >= 3:
                self.state, self.why = "absent", "gave up after three starts"
            else:
                self.start()
