"""Routes the same logits here and in torch, in turns, and writes the times: DeepSeek-V3's rule, 8 of 256 experts.

    route.py --ours BIN     measures, writes benches/record/<machine>/<date>-route.csv, prints the table

Same logits, bias and threads; ids and weights are compared before anything is timed. torch runs the rule eagerly, as
models do, and compiled. `scripts/bench-peers route` builds what this needs.
"""

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from cpu import HERE, describe, machine_name

EXPERTS, GROUPS, TOPK_GROUPS, TOP_K, SCALE = 256, 8, 4, 8, 2.5
BATCHES, ROUNDS = 8, 3
COLUMNS = ["rule", "tokens", "impl", "version", "median_us", "min_us", "calls", "times_ours"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="the program of benches/peers/route.rs")
    parser.add_argument("--tokens", default="1,64,8192", help="per call")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each program and round, of three")
    parser.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
    parser.add_argument("--machine", default=machine_name(), help="folder of the record")
    parser.add_argument("--record", type=Path, default=HERE.parent / "record")
    parser.add_argument("--no-compile", action="store_true", help="torch runs eagerly only")
    options = parser.parse_args()
    torch.set_num_threads(int(options.threads))
    rows = [row for tokens in options.tokens.split(",") for row in measure(options, int(tokens))]
    path = options.record / options.machine / f"{datetime.date.today().isoformat()}-route.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        # All of the machine; what is timed is another.
        file.writelines(f"# {line}\n" for line in describe(options)[:-1])
        file.write(f"# timed: route alone, {BATCHES} batches in turn, {ROUNDS} rounds of each program in turn\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")
    for row in rows:
        print(f"T={row['tokens']:>5} {row['impl']:>14} {row['median_us']:>10} us  {row['times_ours']}x ours")


def route(logits, bias):
    """8 of the 256 experts from the 4 best of 8 groups, a group by the sum of its two best."""
    scores = logits.sigmoid()
    choice = (scores + bias).view(-1, GROUPS, EXPERTS // GROUPS)
    best_groups = choice.topk(2, dim=-1).values.sum(-1).topk(TOPK_GROUPS, dim=-1, sorted=False).indices
    outside = torch.ones(choice.shape[:2], dtype=torch.bool).scatter_(1, best_groups, False)
    choice = choice.masked_fill(outside.unsqueeze(-1), float("-inf")).view(-1, EXPERTS)
    ids = choice.topk(TOP_K, dim=-1, sorted=False).indices
    weights = scores.gather(1, ids)
    return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20) * SCALE


@torch.inference_mode()
def measure(options, tokens):
    generator = torch.Generator().manual_seed(tokens)
    batches = 2.0 * torch.randn(BATCHES, tokens, EXPERTS, generator=generator)
    bias = 0.1 * torch.randn(EXPERTS, generator=generator)
    peers = {"torch": route} if options.no_compile else {"torch": route, "torch compiled": torch.compile(route)}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        batches.numpy().tofile(folder / "logits.f32")
        bias.numpy().tofile(folder / "bias.f32")
        ours(options, folder, tokens, 0.0)
        for name, peer in peers.items():
            compare(name, folder, batches[0], bias, peer)
        rounds = {"fused-moe": []} | {name: [] for name in peers}
        for _ in range(ROUNDS):
            rounds["fused-moe"].append(ours(options, folder, tokens, options.seconds))
            for name, peer in peers.items():
                rounds[name].append(timed(peer, batches, bias, options.seconds))
    median = {name: statistics.median(times["median_us"] for times in of) for name, of in rounds.items()}
    for name, of in rounds.items():
        yield {
            "rule": "deepseek_v3",
            "tokens": tokens,
            "impl": name,
            "version": of[0].get("version", torch.__version__),
            "median_us": f"{median[name]:.1f}",
            "min_us": f"{min(times['min_us'] for times in of):.1f}",
            "calls": sum(times["calls"] for times in of),
            "times_ours": f"{median[name] / median['fused-moe']:.2f}",
        }


def ours(options, folder, tokens, seconds):
    command = [options.ours, "--bench", "--dir", folder, "--tokens", str(tokens), "--seconds", str(seconds)]
    environment = os.environ | {"RAYON_NUM_THREADS": options.threads}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def timed(call, batches, bias, seconds):
    """As benches/common/laps.rs: laps over all batches."""
    laps = []
    for batch in batches:
        call(batch, bias)
    end = time.perf_counter() + seconds
    while not laps or time.perf_counter() < end:
        start = time.perf_counter()
        for batch in batches:
            call(batch, bias)
        laps.append((time.perf_counter() - start) / len(batches) * 1e6)
    return {"median_us": statistics.median(laps), "min_us": min(laps), "calls": len(laps) * len(batches)}


def compare(name, folder, logits, bias, peer):
    """The same experts, but where two scores are nearer than f32 tells apart; the same weights."""
    shape = (len(logits), TOP_K)
    our_ids = torch.from_file(str(folder / "ids.u32"), size=shape[0] * shape[1], dtype=torch.int32).view(shape).long()
    our_weights = torch.from_file(str(folder / "weights.f32"), size=shape[0] * shape[1]).view(shape)
    ids, weights = peer(logits, bias)
    dense = torch.zeros_like(logits).scatter_(1, ids, weights)
    our_dense = torch.zeros_like(logits).scatter_(1, our_ids, our_weights)
    different = ((dense - our_dense).abs() > 1e-5).any(1)
    if different.sum() > max(1, len(logits) // 4096):
        raise SystemExit(f"{name}: {different.sum()} of {len(logits)} tokens are routed otherwise")


if __name__ == "__main__":
    main()
