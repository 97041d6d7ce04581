"""Tables and the roofline of a record, from its results.csv alone."""

import csv
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import goals
from .plan import OURS
from .roofline import svg

RECORDS = Path(__file__).resolve().parents[2] / "record"
NUMBERS = ["E", "k", "H", "I", "T", "us", "us_min", "n", "tflops", "gbps", "hit_experts"]
# A call up to this many tokens is measured by the weights that it has to read, a larger one by its arithmetic.
DECODE = 64
# How rows are timed on a GPU; elsewhere times mean nothing.
GPU_MODES = {"graph", "eager"}


@dataclass
class Record:
    """A results.csv."""

    about: dict
    rows: list

    def best_ceiling(self, unit, column):
        """The better of start and end; None where it was not measured."""
        values = [r[column] for r in self.rows if r["peer"] == "ceiling" and r["unit"].startswith(unit) and r[column]]
        return max(values, default=None)

    @property
    def dense(self):
        return self.best_ceiling("dense", "tflops")

    @property
    def copy(self):
        return self.best_ceiling("device copy", "gbps")


@dataclass
class Line:
    """One case: ours, and the fastest correct row of each peer."""

    preset: str
    dist: str
    tokens: int
    ours: dict
    peers: dict

    @property
    def best(self):
        return min(self.peers.values(), key=lambda row: row["us"], default=None)

    @property
    def ratio(self):
        """How many times as long the best peer takes; None without one."""
        return self.best["us"] / self.ours["us"] if self.best else None

    def of_ceiling(self, record):
        """The share of the copy bandwidth up to DECODE tokens, of the dense rate above."""
        ceiling, column = (record.copy, "gbps") if self.tokens <= DECODE else (record.dense, "tflops")
        return self.ours[column] / ceiling if ceiling else None


def read(path):
    """Comments `# name: value` anywhere, and rows."""
    text = Path(path).read_text().splitlines()
    about = dict(line[2:].split(": ", 1) for line in text if line.startswith("# ") and ": " in line)
    rows = list(csv.DictReader(line for line in text if not line.startswith("#")))
    for row in rows:
        for column in NUMBERS:
            value = row.get(column)
            row[column] = float(value) if value else None
    return Record(about, rows)


def lines(record):
    """Cases that ours was measured in, in the order of the record's presets. Wrong rows are nobody's time."""
    timed = [r for r in record.rows if r["status"] == "ok" and r["us"] and r["unit"] in ("layer", "experts")]
    cases = {}
    for row in timed:
        case = cases.setdefault((row["preset"], row["dist"], int(row["T"])), {})
        if row["peer"] not in case or row["us"] < case[row["peer"]]["us"]:
            case[row["peer"]] = row
    presets = list(dict.fromkeys(preset for preset, _, _ in cases))
    order = sorted(cases.items(), key=lambda item: (presets.index(item[0][0]), item[0][1:]))
    return [Line(*key, case[OURS], {p: r for p, r in case.items() if p != OURS}) for key, case in order if OURS in case]


def percent(share):
    return "" if share is None else f"{share:.0%}"


def times(ratio):
    return "" if ratio is None else f"{ratio:.2f}×"


def peer_cell(line, peer):
    row = line.peers.get(peer)
    return f"{row['us']:.1f} ({times(row['us'] / line.ours['us'])})" if row else ""


def table(record):
    """A row a case: our time, how near the ceiling, and each peer with how many times as long it takes."""
    found = lines(record)
    peers = list(dict.fromkeys(peer for line in found for peer in line.peers))
    head = ["layer", "routing", "T", "ours, µs", "TFLOP/s", "GB/s", "of ceiling", "best peer"] + peers
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in found:
        ours, best = line.ours, line.best
        cells = [line.preset, line.dist, str(line.tokens), f"**{ours['us']:.1f}**", f"{ours['tflops']:.1f}"]
        cells += [f"{ours['gbps']:.0f}", percent(line.of_ceiling(record))]
        cells += [f"{best['peer']} **{times(line.ratio)}**" if best else ""]
        out.append("| " + " | ".join(cells + [peer_cell(line, peer) for peer in peers]) + " |")
    return out


def routing(record):
    """Routing with the permutation, by preset and tokens: ours by the model's rule, peers by softmax and top-k."""
    timed = [r for r in record.rows if r["us"] and r["status"] in ("ok", "unchecked")]
    rows = [r for r in timed if r["peer"].startswith("route: ") and r["unit"].startswith("route+")]
    if not rows:
        return []
    tokens = sorted({int(r["T"]) for r in rows})
    out = ["Ours by the model's own rule, the peers by softmax and top-k:", ""]
    out += ["| route + permute, µs | " + " | ".join(f"T={t}" for t in tokens) + " |", "|---|" + "---|" * len(tokens)]
    for preset, peer in dict.fromkeys((r["preset"], r["peer"]) for r in rows):
        found = {int(r["T"]): r for r in rows if (r["preset"], r["peer"]) == (preset, peer)}
        cells = [f"{found[t]['us']:.1f}" if t in found else "" for t in tokens]
        out.append(f"| {preset}, {peer.removeprefix('route: ')} | " + " | ".join(cells) + " |")
    return out


def failures(record):
    """What was not measured, or is wrong, and why."""
    bad, name = {}, lambda row: [row[column] for column in ("peer", "preset", "T", "dist")]
    measured = [name(row) for row in record.rows if row["status"] == "ok"]
    for row in record.rows:
        if row["status"] not in ("ok", "unchecked") and not (row["status"] == "absent" and name(row) in measured):
            bad.setdefault((row["peer"], row["status"], row["note"]), []).append(row)
    where = lambda rows: f"{len(rows)} rows, {rows[0]['preset']} T={rows[0]['T'] or 0:.0f} first"  # noqa: E731
    return [f"- {peer}: {status} ({where(rows)}): {note}" for (peer, status, note), rows in bad.items()]


def document(record):
    """table.md."""
    ceilings = f"dense bf16 {record.dense or 0:.0f} TFLOP/s, device copy {record.copy or 0:.0f} GB/s (read and written)"
    title = "Layers on one GPU, beside other projects and the ceilings of the same run"
    out = ["# " + (title if on_gpu(record) else "A try without a GPU: no time here means anything"), ""]
    out += [f"- {name}: {value}" for name, value in record.about.items()] + [f"- ceilings: {ceilings}", ""]
    out += [
        f"Of ceiling: of the copy bandwidth up to T = {DECODE}, of the dense rate above. In brackets and with the best",
        "peer: how many times as long it takes as ours. A peer's time is the better of its units `experts` (its plan",
        "given) and `layer`; ours is always `layer`, its own sort included. No call finds its weights in the L2:",
        "batches over copies of them take turns (column `cold` of results.csv).",
        "",
    ]
    reached = goals.goals_of(record, lines(record))
    for part in (table(record), goals.table(reached), goals.missed(reached), routing(record), failures(record)):
        out += part + [""] if part else []
    return "\n".join(out)


def write(folder):
    record = read(Path(folder) / "results.csv")
    (Path(folder) / "table.md").write_text(document(record))
    (Path(folder) / "roofline.svg").write_text(svg(record, lines(record)))


def slug(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def on_gpu(record):
    """Whether a GPU ran it, and timed every row by its own clock."""
    timed = {row["mode"] for row in record.rows if row["us"]}
    emulated = record.about.get("device", "none").startswith("none") or "ptx-vm" in record.about.get("our device", "")
    return not emulated and bool(timed) and timed <= GPU_MODES


def keep(folder, records=RECORDS):
    """Copies a run's files to benches/record/<device>/<date>/."""
    record = read(Path(folder) / "results.csv")
    if not on_gpu(record):
        raise SystemExit(f"{folder}: a run without a GPU is no record")
    target = Path(records) / slug(record.about["device"]) / record.about["date"][:10]
    target.mkdir(parents=True, exist_ok=True)
    for name in ("results.csv", "table.md", "roofline.svg"):
        shutil.copy(Path(folder) / name, target / name)
    return target


def newest(records=RECORDS):
    """The folder of the newest record of a GPU, if there is any."""
    found = [path.parent for path in Path(records).glob("*/*/results.csv") if on_gpu(read(path))]
    return max(found, key=lambda folder: (folder.name, folder.parent.name), default=None)


def readme_section(records=RECORDS):
    """What README says of GPUs: a record's figures, or that there are none."""
    folder = newest(records)
    if folder is None:
        return [
            "Not measured yet: no GPU has run these kernels, so there are no figures. `scripts/gpu-bundle` makes the",
            "folder that measures them in one command on a machine that has one.",
        ]
    record = read(folder / "results.csv")
    link = f"benches/record/{folder.parent.name}/{folder.name}"
    about = record.about
    out = [
        f"Measured on {about['device']}, driver {about['driver']}, {about['date'][:10]}, commit {about['commit']}",
        f"([record]({link}/table.md), [roofline]({link}/roofline.svg)). Ceilings of the same run:",
        f"{record.dense or 0:.0f} TFLOP/s dense bf16, {record.copy or 0:.0f} GB/s device copy.",
        "",
    ]
    shown = {1, 8, 64, 1024, 8192, 32768}
    rows = [r for r in record.rows if r["T"] is None or r["T"] in shown and r["dist"] == "uniform"]
    return out + table(Record(about, rows)) + [""] + goals.table(goals.goals_of(record, lines(record)))
