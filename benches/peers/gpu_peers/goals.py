"""What was set out to be reached on an H100, and whether a record reaches it, with the numbers."""

import math
import operator
from dataclasses import dataclass

from .plan import OURS


@dataclass
class Goal:
    """A bound, and each case's figure: (case, number)."""

    name: str
    bound: float
    cases: list
    at_least: bool = True

    def met(self, value):
        return operator.ge(value, self.bound) if self.at_least else operator.le(value, self.bound)

    @property
    def missed(self):
        return [(case, value) for case, value in self.cases if not self.met(value)]

    @property
    def row(self):
        bound = f"{'≥' if self.at_least else '≤'} {self.bound:g}"
        if not self.cases:
            return f"| {self.name} | {bound} | | | | not measured |"
        values = [value for _, value in self.cases]
        worst = min(values) if self.at_least else max(values)
        met = f"{len(values) - len(self.missed)} of {len(values)}"
        verdict = "missed" if self.missed else "met"
        return f"| {self.name} | {bound} | {worst:.2f} | {geometric_mean(values):.2f} | {met} | **{verdict}** |"


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def goals_of(record, lines):
    """Of a record and its cases, as `report.lines` gives them."""

    def layers(name, bound, wanted, figure):
        cases = [(f"{line.preset} {line.dist} T={line.tokens}", figure(line)) for line in lines if wanted(line)]
        return Goal(name, bound, [(case, value) for case, value in cases if value is not None])

    def share(line):
        return line.of_ceiling(record)

    def over_best(line):
        return line.ratio

    def over_triton(line):
        return line.peers["vllm"]["us"] / line.ours["us"] if "vllm" in line.peers else None

    return [
        layers("T ≥ 8192: share of the dense rate", 0.75, lambda line: line.tokens >= 8192, share),
        layers("T ≥ 8192: times as fast as the best peer", 1.15, lambda line: line.tokens >= 8192, over_best),
        layers("T ≤ 16: share of the copy bandwidth", 0.75, lambda line: line.tokens <= 16, share),
        layers("T ≤ 8: times as fast as vLLM's Triton", 2, lambda line: line.tokens <= 8, over_triton),
        routing("T ≤ 64: route + permute, µs", 8, record, lambda row: row["T"] <= 64),
        routing("T = 8192, E = 256: route + permute, µs", 20, record, lambda row: (row["T"], row["E"]) == (8192, 256)),
    ]


def routing(name, bound, record, wanted):
    ours = [r for r in record.rows if r["peer"] == f"route: {OURS}" and r["status"] == "ok" and r["us"] and wanted(r)]
    return Goal(name, bound, [(f"{r['preset']} T={r['T']:.0f}", r["us"]) for r in ours], at_least=False)


def table(goals):
    """A row a goal."""
    head = ["| goal | | worst case | geometric mean | cases that meet it | |", "|---|---|---|---|---|---|"]
    return head + [goal.row for goal in goals]


def missed(goals):
    """What missed each, for benches/record/NOTES.md to explain."""
    named = [(goal.name, ", ".join(f"{case} ({value:.2f})" for case, value in goal.missed)) for goal in goals]
    return [f"- {name}: missed by {cases}" for name, cases in named if cases]
