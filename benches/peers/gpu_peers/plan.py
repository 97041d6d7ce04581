"""What is measured, and in which order: the most important rows first, so that a run that ends early has them."""

# Presets, numbers of tokens and distributions, each with its weight: 0 is the most important.
PRESETS = {"qwen3-30b-a3b": 0, "mixtral-8x7b": 0, "deepseek-v3": 1, "gpt-oss-120b": 1, "deepseek-moe-16b": 1}
TOKENS = {1: 0, 8: 0, 64: 0, 1024: 0, 8192: 0, 4: 1, 16: 1, 256: 1, 4096: 1, 32768: 1, 2: 2, 32: 2}
DISTRIBUTIONS = {"uniform": 0, "zipf": 2}
# Rows of these weights form one pass over everything.
LEVELS = [(0, 1), (2, 2), (3, 9)]

OURS = "fused-moe"
#  implementation      worker            weight  numbers of tokens
IMPLS = {
    OURS: ("ours", 0, None),
    "torch_grouped_mm": ("torch", 0, None),
    "hf_grouped_mm": ("torch", 0, None),
    "hf_batched_mm": ("torch", 1, (1, 16)),
    "vllm": ("vllm", 0, None),
    "deepgemm": ("deepgemm", 0, None),
    "triton_kernels": ("triton_kernels", 1, None),
    "routing": ("routing", 1, None),
}
WORKERS = ["ours", "torch", "vllm", "deepgemm", "triton_kernels", "routing"]
TRITON_WORKERS = ["vllm", "triton_kernels"]

FIELDS = [
    "peer", "unit", "preset", "E", "k", "H", "I", "T", "dist", "us", "us_min", "n", "mode", "tflops", "gbps",
    "hit_experts", "relerr", "status", "variant", "cold", "note",
]  # fmt: skip


def level_of(row):
    return next(i for i, (low, high) in enumerate(LEVELS) if low <= row["weight"] <= high)


def plan_rows(cases, impls):
    """A row for each case of the manifest and each implementation."""
    rows = []
    for case in cases:
        for impl in impls:
            worker, weight, limit = IMPLS[impl]
            tokens, dist = case["tokens"], case["distribution"]
            if limit and not limit[0] <= tokens <= limit[1]:
                continue
            if impl == "routing" and dist != "uniform":
                continue
            weight += PRESETS.get(case["preset"], 0) + TOKENS.get(tokens, 1) + DISTRIBUTIONS[dist]
            rows.append(
                {"id": len(rows), "weight": weight, "worker": worker, "impl": impl}
                | {"preset": case["preset"], "T": tokens, "dist": dist}
            )
    return rows


def key_of(row):
    """What a planned row and its results have in common; None for what is measured in every run, or could not start."""
    impl = row.get("impl") or (OURS if OURS in row["peer"] else row["peer"])
    impl = "routing" if impl.startswith("route: ") else impl
    there = row["preset"] and row.get("status") != "absent"
    return (impl, row["preset"], int(row["T"]), row["dist"]) if there else None


def chunks(rows):
    """Rows that one worker runs together, with one preset's weights: (level, worker, preset, rows)."""
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    for level in range(len(LEVELS)):
        for preset in presets:
            for worker in WORKERS:
                wanted = (worker, preset, level)
                part = [r for r in rows if (r["worker"], r["preset"], level_of(r)) == wanted]
                # Lighter rows first, rows of one case together.
                part.sort(key=lambda r: (DISTRIBUTIONS[r["dist"]], TOKENS.get(r["T"], 1), r["T"]))
                if part:
                    yield level, worker, preset, part


def case_fields(shape, case):
    """The columns of a row that say what was done."""
    cold = f"rotate {case['batches']}x{shape['copies']}"
    if shape["num_experts"] != shape["all_experts"]:
        cold += f", {shape['num_experts']} of {shape['all_experts']} experts fit"
    return {
        "preset": shape["preset"], "E": shape["num_experts"], "k": shape["top_k"], "H": shape["hidden_size"],
        "I": shape["intermediate_size"], "T": case["tokens"], "dist": case["distribution"],
        "hit_experts": round(case["hit_experts"], 1), "cold": cold,
    }  # fmt: skip


def rates(case, us):
    """TFLOP/s, and GB/s of the weights of the experts that are hit."""
    return {"tflops": float(f"{case['flops'] / us / 1e6:.4g}"), "gbps": float(f"{case['bytes'] / us / 1e3:.4g}")}


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
