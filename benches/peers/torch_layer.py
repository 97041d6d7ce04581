"""The layer in torch on the CPU, by transformers' own experts module in its three implementations.

    torch_layer.py MANIFEST

takes the manifest that benches/peers/ours.rs wrote; times laps as asked for on the standard input, as
benches/common/laps.rs says.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from data import Source

IMPLEMENTATIONS = ["grouped_mm", "batched_mm", "eager"]


class Layer:
    """Routed experts with SwiGLU, behind any router, and the shared expert that some have."""

    def __init__(self, manifest, source, index, dtype):
        sizes = {name: manifest[name] for name in ("num_experts", "hidden_size", "top_k")}
        intermediate_size, shared_size = manifest["intermediate_size"], manifest["shared_intermediate_size"]
        self.config = Qwen3MoeConfig(
            num_experts=sizes["num_experts"],
            num_experts_per_tok=sizes["top_k"],
            hidden_size=sizes["hidden_size"],
            moe_intermediate_size=intermediate_size,
            hidden_act="silu",
        )
        with torch.device("meta"):
            self.experts = Qwen3MoeExperts(self.config)
        e, h, i = sizes["num_experts"], sizes["hidden_size"], intermediate_size

        def weight(shape, part):
            return torch.nn.Parameter(source.tensor(shape, dtype, part, index), requires_grad=False)

        self.experts.gate_up_proj = weight((e, 2 * i, h), "gate_up")
        self.experts.down_proj = weight((e, h, i), "down")
        self.shared = None
        if shared_size:
            gate_up = weight((2 * shared_size, h), "shared_gate_up")
            self.shared = (gate_up[:shared_size], gate_up[shared_size:], weight((h, shared_size), "shared_down"))

    def forward(self, call):
        output = self.experts(call["hidden"], call["ids"], call["weights"])
        if self.shared:
            gate, up, down = self.shared
            hidden = call["hidden"]
            output = output + F.linear(F.silu(F.linear(hidden, gate)) * F.linear(hidden, up), down)
        return output


def load(manifest, directory, call, dtype):
    def read(name, kind, columns):
        numbers = np.fromfile(directory / f"{call['stem']}.{name}", dtype=kind)
        return torch.from_numpy(numbers).view(-1, columns)

    return {
        "layer": call["layer"],
        "ids": read("ids", np.int32, manifest["top_k"]).long(),
        "weights": read("weights", np.float32, manifest["top_k"]).to(dtype),
        "hidden": read("hidden", np.float32, manifest["hidden_size"]).to(dtype),
    }


def timed(calls, seconds, call):
    """As benches/common/laps.rs."""
    call(calls - 1)
    start, laps = time.perf_counter(), []
    while not laps or time.perf_counter() - start < seconds:
        lap = time.perf_counter()
        for i in range(calls):
            call(i)
        laps.append((time.perf_counter() - lap) / calls)
    return {"laps": laps, "calls": len(laps) * calls}


def available_memory():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) << 10
    raise SystemExit("no MemAvailable in /proc/meminfo")


def too_large(implementation, manifest, tokens, dtype):
    """batched_mm copies both matrices of every slot's expert; says so where that is more than half of what is free."""
    if implementation != "batched_mm":
        return None
    slots = tokens * manifest["top_k"]
    copies = slots * 3 * manifest["hidden_size"] * manifest["intermediate_size"] * dtype.itemsize
    if copies < available_memory() // 2:
        return None
    return f"would copy {copies / 1e9:.0f} GB of weights"


class Cases:
    """The calls of each number of tokens, loaded when they are first asked for."""

    def __init__(self, manifest, directory, layers, dtype):
        self.manifest, self.directory, self.layers, self.dtype = manifest, directory, layers, dtype
        self.calls, self.checked = {}, set()

    def answer(self, tokens, seconds, implementation):
        if note := too_large(implementation, self.manifest, tokens, self.dtype):
            return {"note": note}
        if tokens not in self.calls:
            case = next(case for case in self.manifest["cases"] if case["tokens"] == tokens)
            self.calls[tokens] = [load(self.manifest, self.directory, call, self.dtype) for call in case["calls"]]
        calls = self.calls[tokens]
        for layer in self.layers:
            layer.config._experts_implementation = implementation

        def forward(i):
            return self.layers[calls[i]["layer"]].forward(calls[i])

        answer = {}
        if (tokens, implementation) not in self.checked:
            self.checked.add((tokens, implementation))
            answer["rel_error"] = self.error(tokens, forward(0))
        return answer | timed(len(calls), seconds, forward)

    def error(self, tokens, output):
        actual = output.float().flatten()
        expected = torch.from_numpy(np.fromfile(self.directory / f"t{tokens}-0.output", dtype=np.float32))
        return ((actual - expected).norm() / expected.norm()).item()


def dense_rate(dtype, n=2048):
    """Operations per second of a dense product, the best of five."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        a @ b.T
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def main():
    manifest_path = Path(sys.argv[1])
    manifest = json.loads(manifest_path.read_text())
    torch.set_num_threads(manifest["threads"])
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[manifest["dtype"]]
    with torch.inference_mode():
        source = Source()
        layers = [Layer(manifest, source, index, dtype) for index in range(manifest["layers"])]
        cases = Cases(manifest, manifest_path.parent, layers, dtype)
        version = f"{transformers.__version__}, torch {torch.__version__}"
        impls = {f"transformers {implementation}": version for implementation in IMPLEMENTATIONS}
        print(json.dumps({"impls": impls, "dense_rate": dense_rate(dtype)}), flush=True)
        for line in sys.stdin:
            tokens, seconds, implementation = line.rstrip("\n").split(" ", 2)
            answer = cases.answer(int(tokens), float(seconds), implementation.removeprefix("transformers "))
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
