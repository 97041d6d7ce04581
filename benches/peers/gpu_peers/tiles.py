"""Tile configurations for vLLM's Triton kernel: its tuned files, and a small sweep."""

import json
import math
import os
import re

CONFIG_KEYS = ["BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages"]


def tile(*v):
    return dict(zip(CONFIG_KEYS, v))


def tile_name(c):
    return (
        "x".join(str(c.get(k, "-")) for k in CONFIG_KEYS[:3])
        + f" g{c.get('GROUP_SIZE_M', 1)} w{c.get('num_warps', 4)} s{c.get('num_stages', '-')}"
    )


def label(name, params):
    if "BLOCK_SIZE_M" in params:
        return f"{name} [{tile_name(params)}]"
    return name


def tile_pool(T, k, E):
    """A small sweep for a fused-MoE Triton kernel, by rows per hit expert."""
    S = T * k
    hit = E * (1 - (1 - 1 / E) ** S)
    m = S / max(1.0, hit)
    if m <= 4:
        pool = [(16, 32, 256, 1, 4, 4), (16, 64, 128, 1, 4, 4), (16, 64, 256, 1, 4, 3), (16, 128, 128, 1, 4, 4)]
    elif m <= 40:
        pool = [(16, 256, 128, 1, 8, 2), (32, 128, 128, 1, 8, 3), (16, 128, 128, 1, 4, 4), (64, 128, 64, 1, 4, 3)]
    elif m <= 96:
        pool = [(64, 128, 64, 1, 4, 3), (64, 128, 128, 1, 8, 3), (128, 128, 64, 1, 8, 3), (128, 256, 64, 1, 8, 4)]
    else:
        pool = [(128, 128, 64, 8, 8, 3), (128, 256, 64, 1, 8, 4), (128, 256, 64, 8, 8, 4), (64, 256, 64, 8, 8, 4)]
    return [tile(*p) for p in pool]


def tuned_configs(folder, E, I, T):
    """Tuned JSON entries for this shape (else the nearest H100/H200 one): [(label, config)]."""
    found, near = [], []
    for dirpath, _, files in os.walk(folder):
        for f in files:
            m = re.fullmatch(r"E=(\d+),N=(\d+),device_name=NVIDIA_(H100|H200|H800)([^,]*?)" + r"\.json", f)
            if not m or f.endswith("_down.json"):
                continue
            version = [-int(v) for v in re.findall(r"\d+", os.path.basename(dirpath))]
            e, n, rank = int(m[1]), int(m[2]), (m[3] != "H100", version)
            if (e, n) == (E, I):
                found.append((rank, os.path.join(dirpath, f)))
            elif abs(math.log2(e / E)) <= 1:
                near.append((abs(math.log2(e / E)) + abs(math.log2(n / I)), rank, os.path.join(dirpath, f)))
    files = [("tuned", p) for _, p in sorted(found)[:2]]
    if not files and near:
        files = [("near", min(near)[2])]
    out = []
    for kind, path in files:
        with open(path) as fh:
            table = {int(a): b for a, b in json.load(fh).items() if a.isdigit()}
        if table:
            cfg = table[min(table, key=lambda a: abs(a - T))]
            cfg = {a: cfg[a] for a in CONFIG_KEYS if a in cfg}
            name = re.sub(r",device_name=NVIDIA_", " ", os.path.basename(path))[:-5]
            out.append((f"{kind} {name}", cfg))
    return out


def distinct(variants):
    seen, out = set(), []
    for name, params in variants:
        key = json.dumps(params, sort_keys=True)
        if key not in seen:
            seen.add(key)
            out.append((name, params))
    return out
