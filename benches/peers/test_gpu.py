"""What gpu.py writes and plans, without torch and without a GPU: python3 -m unittest discover -s benches/peers"""

import argparse
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path
from unittest.mock import patch

import tune
from gpu_peers import goals, plan, report
from gpu_peers.ours import Ours, finished
from gpu_peers.pool import Pool
from gpu_peers.run import room, rows_of_earlier
from gpu_peers.workers import Worker

SHAPE = {
    "preset": "qwen3-30b-a3b", "num_experts": 128, "all_experts": 128, "top_k": 8, "hidden_size": 2048,
    "intermediate_size": 768, "copies": 2,
}  # fmt: skip


def case(tokens, dist="uniform", preset="qwen3-30b-a3b"):
    expert = 3 * 2048 * 768
    hit = min(128, tokens * 8)
    return {
        "preset": preset, "tokens": tokens, "distribution": dist, "batches": 2, "stem": "", "hit_experts": hit,
        "bytes": hit * expert * 2.0, "flops": 2.0 * expert * tokens * 8,
    }  # fmt: skip


def row(peer, unit, tokens, us, status="ok", **more):
    found = plan.case_fields(SHAPE, case(tokens)) | (plan.rates(case(tokens), us) if us else {})
    return (
        found | {"peer": peer, "unit": unit, "us": us, "us_min": us, "n": 9, "mode": "graph", "status": status} | more
    )


ROWS = [
    {"peer": "ceiling", "unit": "dense bf16 8192^3", "us": 1400, "tflops": 790.0, "mode": "eager", "status": "ok"},
    {"peer": "ceiling", "unit": "dense bf16 8192^3", "us": 1390, "tflops": 800.0, "mode": "eager", "status": "ok"},
    {"peer": "ceiling", "unit": "device copy", "us": 2800, "gbps": 3000.0, "mode": "eager", "status": "ok"},
    row(plan.OURS, "layer", 1, 30.0),
    row("vllm", "experts", 1, 90.0, variant="default"),
    row("vllm", "layer", 1, 100.0),
    row("deepgemm", "experts", 1, 15.0, status="WRONG", note="relative error"),
    row(plan.OURS, "layer", 8192, 1000.0),
    row("vllm", "layer", 8192, 1500.0),
    row("deepgemm", "experts", 8192, 1250.0),
    row("deepgemm", "gemm", 8192, 900.0),
    row("vllm", "layer", 64, 200.0),
    row(f"route: {plan.OURS}", "route+permute", 64, 7.5),
    row(f"route: {plan.OURS}", "route+permute", 8, 8.5),
    row("hf_grouped_mm", "", 8192, "", status="crash", note="exit 139"),
]


def record(folder, rows=ROWS):
    with open(Path(folder) / "results.csv", "w", newline="") as file:
        file.write("# device: NVIDIA H100 80GB HBM3\n# driver: 580.1\n# date: 2030-01-02 03:04 UTC\n# commit: abc\n")
        writer = csv.DictWriter(file, plan.FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[:3])
        file.write("# torch: 2.11\n")
        writer.writerows(rows[3:])
    return report.read(Path(folder) / "results.csv")


class Report(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_ceilings_are_the_better_of_both_and_comments_may_stand_anywhere(self):
        found = record(self.folder)
        self.assertEqual((found.dense, found.copy), (800.0, 3000.0))
        self.assertEqual(found.about["torch"], "2.11")

    def test_the_best_peer_is_the_fastest_correct_layer(self):
        one, many = report.lines(record(self.folder))
        # Not DeepGEMM's wrong row; vLLM's better unit. At 8192 not the products alone.
        self.assertEqual((one.best["peer"], one.ratio), ("vllm", 3.0))
        self.assertEqual((many.best["peer"], many.ratio), ("deepgemm", 1.25))

    def test_shares_are_of_the_ceiling_that_binds(self):
        found = record(self.folder)
        one, many = report.lines(found)
        bytes_hit = 8 * 3 * 2048 * 768 * 2
        self.assertAlmostEqual(one.of_ceiling(found), bytes_hit / 30e-6 / 3000e9, places=3)
        self.assertAlmostEqual(many.of_ceiling(found), many.ours["tflops"] / 800, places=6)

    def test_the_table_has_a_row_a_case_and_a_column_a_peer(self):
        found = report.table(record(self.folder))
        self.assertEqual(len(found), 4)
        self.assertEqual({line.count("|") for line in found}, {11})
        self.assertIn("vllm **3.00×**", found[2])
        self.assertIn("1500.0 (1.50×)", found[3])

    def test_each_goal_is_met_or_missed_by_named_cases_or_not_measured(self):
        kept = record(self.folder)
        reached = goals.goals_of(kept, report.lines(kept))
        found = "\n".join(goals.table(reached) + goals.missed(reached))
        self.assertIn("| T ≥ 8192: times as fast as the best peer | ≥ 1.15 | 1.25 | 1.25 | 1 of 1 | **met** |", found)
        self.assertIn("| T ≤ 8: times as fast as vLLM's Triton | ≥ 2 | 3.00 | 3.00 | 1 of 1 | **met** |", found)
        self.assertIn("| T ≥ 8192: share of the dense rate | ≥ 0.75 | 0.77 | 0.77 | 1 of 1 | **met** |", found)
        self.assertIn("| T ≤ 64: route + permute, µs | ≤ 8 | 8.50 | 7.98 | 1 of 2 | **missed** |", found)
        self.assertIn("- T ≤ 64: route + permute, µs: missed by qwen3-30b-a3b T=8 (8.50)", found)
        self.assertIn("| T = 8192, E = 256: route + permute, µs | ≤ 20 | | | | not measured |", found)

    def test_what_was_not_measured_is_listed_with_its_reason(self):
        found = "\n".join(report.failures(record(self.folder)))
        self.assertIn("hf_grouped_mm: crash (1 rows, qwen3-30b-a3b T=8192 first): exit 139", found)
        self.assertIn("deepgemm: WRONG", found)

    def test_the_roofline_is_svg_with_a_point_for_each_row(self):
        record(self.folder)
        report.write(self.folder)
        tree = xml.etree.ElementTree.parse(self.folder / "roofline.svg")
        titles = [node.text for node in tree.iter("{http://www.w3.org/2000/svg}title")]
        self.assertEqual(len(titles), 4)
        self.assertTrue((self.folder / "table.md").read_text().startswith("# Layers on one GPU"))

    def test_an_empty_run_is_no_crash(self):
        record(self.folder, ROWS[:3])
        report.write(self.folder)
        self.assertIn("nothing was measured", (self.folder / "roofline.svg").read_text())

    def test_a_record_is_kept_by_device_and_date_and_makes_the_readme(self):
        records = self.folder / "record"
        self.assertIn("Not measured yet", report.readme_section(records)[0])
        record(self.folder)
        report.write(self.folder)
        target = report.keep(self.folder, records)
        self.assertEqual(target, records / "nvidia-h100-80gb-hbm3" / "2030-01-02")
        section = "\n".join(report.readme_section(records))
        self.assertIn("800 TFLOP/s dense bf16, 3000 GB/s", section)
        self.assertIn("record/nvidia-h100-80gb-hbm3/2030-01-02/table.md", section)

    def test_a_run_without_a_gpu_is_no_record(self):
        text = "# device: none: x86_64\n" + ",".join(plan.FIELDS) + "\n"
        (self.folder / "results.csv").write_text(text)
        self.assertRaises(SystemExit, report.keep, self.folder, self.folder / "record")

    def test_a_row_that_no_gpu_timed_makes_no_record_and_no_readme(self):
        folder = self.folder / "record" / "a-card" / "2030-01-02"
        folder.mkdir(parents=True)
        for mode in ("host clock", "cpu", "cpu graph"):
            record(folder, ROWS + [row(plan.OURS, "layer", 2, 5.0) | {"mode": mode}])
            self.assertRaises(SystemExit, report.keep, folder, self.folder / "other")
            report.write(folder)
            self.assertTrue((folder / "table.md").read_text().startswith("# A try without a GPU"))
            self.assertIn("Not measured yet", report.readme_section(self.folder / "record")[0])

    def test_a_run_goes_on_behind_its_own_rows_alone(self):
        record(self.folder)
        about = {"device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "commit": "abc"}
        rows = rows_of_earlier(self.folder / "results.csv", about)
        planned = plan.plan_rows([case(t) for t in (1, 64, 8192)], list(plan.IMPLS))
        left = [r["impl"] for r in planned if plan.key_of(r) not in set(map(plan.key_of, rows)) and r["T"] == 8192]
        # Measured or crashed: not once more.
        self.assertEqual(left, ["torch_grouped_mm", "triton_kernels", "routing"])
        self.assertIsNone(plan.key_of(rows[0]))
        self.assertRaises(SystemExit, rows_of_earlier, self.folder / "results.csv", about | {"commit": "def"})
        self.assertEqual(rows_of_earlier(self.folder / "none.csv", about), [])


class Plan(unittest.TestCase):
    def test_rows_come_most_important_first_and_peers_of_a_preset_together(self):
        cases = [case(t, d) for t in (1, 2, 32, 8192) for d in ("uniform", "zipf")]
        rows = plan.plan_rows(cases, list(plan.IMPLS))
        self.assertFalse([r for r in rows if r["impl"] == "hf_batched_mm" and r["T"] > 16])
        self.assertFalse([r for r in rows if r["impl"] == "routing" and r["dist"] == "zipf"])
        order = list(plan.chunks(rows))
        self.assertEqual(sum(len(part) for *_, part in order), len(rows))
        self.assertEqual([level for level, *_ in order], sorted(level for level, *_ in order))
        self.assertEqual(order[0][1], "ours")

    def test_an_answer_of_ours_is_a_row(self):
        answer = {"laps": [30e-6, 20e-6, 40e-6], "mode": "graph", "rel_error": 1e-3, "calls": 48}
        found = finished(SHAPE, case(1), "layer", answer)
        self.assertEqual((found["us"], found["us_min"], found["peer"]), (30.0, 20.0, plan.OURS))
        self.assertAlmostEqual(found["gbps"], 8 * 3 * 2048 * 768 * 2 / 30e-6 / 1e9, places=0)
        self.assertNotIn("gbps", finished(SHAPE, case(1), "route", answer))


# A worker that dies of row 1 and hangs in row 2.
WORKER = """
import json, os, sys, time
say = lambda **event: print(json.dumps(event), flush=True)
say(ev="ready", available=True, why="", env={}, note="")
for line in sys.stdin:
    for row in json.loads(line)["rows"]:
        say(ev="start", row=row["id"])
        os._exit(3) if row["id"] == 1 else time.sleep(60 * (row["id"] == 2))
        say(ev="row", data={"id": row["id"], "status": "ok"})
        say(ev="done", row=row["id"])
    say(ev="end")
"""


# Compiles two kernels a row, and dies of T = 64.
COMPILER = """
import json, sys
for line in sys.stdin:
    if json.loads(line)["T"] == 64:
        sys.exit(1)
    print(json.dumps({"good": 2, "bad": [], "seconds": 0}), flush=True)
"""


class FakeRun:
    """What workers ask of a run."""

    def __init__(self, command, seconds=60):
        self.args = argparse.Namespace(device="cpu", row_timeout=1, ours=command, ours_device="cpu", graph_max=9)
        self.log, self.inputs, self.shapes, self.results = subprocess.DEVNULL, "", {"qwen3-30b-a3b": SHAPE}, []
        self.role = lambda *_: [sys.executable, "-c", command]
        self.env = lambda _: None
        self.left = lambda: seconds
        self.case = lambda row: case(row["T"])
        self.say = self.saw_env = lambda _: None
        self.row = lambda row: self.results.append((row.get("id", row.get("unit")), row["status"]))
        self.lost = lambda row, status, _: self.results.append((row["id"], status))


class Workers(unittest.TestCase):
    ROWS = [{"id": i, "preset": "qwen3-30b-a3b", "T": 2 + i, "dist": "uniform", "impl": "vllm"} for i in range(4)]

    def test_a_crash_and_a_hang_cost_a_row_each(self):
        run = FakeRun(WORKER)
        worker = Worker(run, "vllm")
        self.addCleanup(worker.kill)
        worker.rows(self.ROWS, 60)
        self.assertEqual(run.results, [(0, "ok"), (1, "crash"), (2, "timeout"), (3, "ok")])
        # Once more would be a fourth start.
        worker.rows(self.ROWS[1:2] + self.ROWS[3:], 60)
        self.assertEqual(run.results[4:], [(1, "crash"), (3, "absent")])

    def test_no_row_begins_behind_the_budget(self):
        for worker in (Worker(run := FakeRun(WORKER, 3), "vllm"), Ours(run)):
            worker.rows(self.ROWS, 3)
            worker.kill()
        self.assertEqual({status for _, status in run.results}, {"budget"})

    def test_chunks_are_ready_when_their_kernels_are_compiled_or_cannot_be(self):
        run = FakeRun(COMPILER)
        run.log, run.env = open(os.devnull, "w"), lambda *_, **__: None
        self.addCleanup(run.log.close)
        rows = plan.plan_rows([case(t) for t in (1, 8, 64, 1024)], ["vllm", "deepgemm", "torch_grouped_mm"])
        pool = Pool(run, rows, 2, 1)
        self.addCleanup(pool.kill)
        for thread in pool.threads:
            thread.join(20)
        self.assertTrue(all(pool.ready(key) for key in pool.pending))
        self.assertEqual(pool.good, {"vllm": 6, "deepgemm": 6})
        self.assertTrue(pool.ready(("torch", "qwen3-30b-a3b", 0)))

    def test_ours_gives_up_a_chunk_and_not_the_next(self):
        run = FakeRun("false")
        worker = Ours(run)
        for _ in range(2):
            worker.rows(self.ROWS, 60)
        expected = [("layer", "error"), ("route", "error")] * 2 + [(2, "absent"), (3, "absent")]
        self.assertEqual(run.results, expected * 2)

    def test_weights_leave_room_for_workspaces_and_peers(self):
        self.assertEqual([room(gib << 30) >> 30 for gib in (0, 24, 80, 141)], [1, 4, 50, 50])

    def test_ours_that_ends_is_a_row_of_its_own_and_starts_again(self):
        with tempfile.TemporaryDirectory() as folder:
            run = FakeRun(ours_gpu(folder))
            worker = Ours(run)
            # The routing of T = 5 ends the program.
            worker.rows(self.ROWS, 60)
        expected = [("layer", "ok"), ("route+permute", "ok")] * 4
        expected[7] = ("route", "error")
        self.assertEqual(run.results, expected)


# Answers like `ours-gpu time`; routing five tokens ends it, a tile of 1 x 1 too; one of 2 x 2 is fast, 3 x 3 hangs.
OURS_GPU = """#!/usr/bin/env python3
import json, sys, time
print(json.dumps({"impl": "fused-moe", "version": "0", "device": "none"}), flush=True)
for line in sys.stdin:
    tokens, seconds, unit, routing, *table = line.split(" ", 4)
    assert routing.strip() == "uniform"
    tile = [entry["tile"] for text in table for entry in json.loads(text)["tiles"]]
    if tile == [[1, 1]] or (unit, tokens) == ("route", "5"):
        sys.exit(1)
    time.sleep(9 if tile == [[3, 3]] else 0)
    laps = [5e-6 if tile == [[2, 2]] else 9e-6]
    print(json.dumps({"laps": laps, "mode": "host clock", "rel_error": 0}), flush=True)
"""


def ours_gpu(folder):
    path = Path(folder, "ours-gpu")
    path.write_text(OURS_GPU)
    path.chmod(0o755)
    return str(path)


class Tune(unittest.TestCase):
    MEASURED = [
        ((1536, 2048), 4, {None: 100.0, (64, 256): 99.0, (128, 256): 150.0}),
        ((1536, 2048), 64, {None: 100.0, (64, 256): 90.0, (128, 256): 120.0}),
        ((1536, 2048), 256, {None: 100.0, (64, 256): 92.0}),
        ((1536, 2048), 1024, {None: 100.0, (64, 256): 130.0, (128, 256): 80.0}),
    ]

    def test_neighbours_with_one_tile_are_one_range_and_what_is_hardly_faster_is_left_to_the_rules(self):
        few, many = tune.entries([9, 0], self.MEASURED)
        self.assertEqual((few["rows_per_expert"], few["tile"]), ([17, 512], [64, 256]))
        self.assertEqual((many["rows_per_expert"], many["tile"]), ([513, 2**32 - 1], [128, 256]))
        self.assertTrue(few["n"][0] < 1536 < few["n"][1] and few["k"][0] < 2048 < few["k"][1])

    def test_a_class_leaves_out_what_was_measured_itself(self):
        near = [((1600, 2048), rows, times) for _, rows, times in self.MEASURED[:1]]
        found = tune.entries([9, 0], self.MEASURED + near)
        self.assertEqual({tuple(entry["n"]) for entry in found}, {(1536, 1536)})

    def test_a_tile_that_ends_or_hangs_the_program_is_no_candidate(self):
        with tempfile.TemporaryDirectory() as folder:
            program = tune.Program(argparse.Namespace(ours=ours_gpu(folder), device="ptx-vm"), folder, "tiny")
            tiles = [[1, 1], [2, 2], [3, 3], [4, 4]]
            with program, patch.object(tune, "PATIENCE", 1), contextlib.redirect_stdout(io.StringIO()) as said:
                found = tune.measure(program, SHAPE, tiles, [64], lambda: 1)
        self.assertEqual([product for product, *_ in found], [(1536, 2048), (2048, 768)])
        for _, rows, times in found:
            self.assertEqual((rows, sorted(times, key=str)), (4, [(2, 2), (4, 4), None]))
            self.assertLess(times[2, 2], times[None])
        self.assertEqual(said.getvalue().count("failed"), 4)

    def test_what_is_written_is_json_again(self):
        for measured in (self.MEASURED, []):
            table = {"measured": "a card", "tiles": tune.entries([9, 0], measured)}
            self.assertEqual(json.loads(tune.written(table)), table)


if __name__ == "__main__":
    unittest.main()
