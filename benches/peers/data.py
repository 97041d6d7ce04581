"""The numbers of benches/common/data.rs once more: bit for bit the same tensors, without passing them through files."""

import math

import numpy as np
import torch

PERIOD = 4_194_301
PARTS = {"gate_up": 0, "down": 1, "shared_gate_up": 2, "shared_down": 3}


def splitmix64(counter):
    with np.errstate(over="ignore"):
        z = (np.asarray(counter, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class Source:
    """One periodic sequence in (-1, 1); a tensor is a window of it."""

    def __init__(self):
        top = (splitmix64(np.arange(PERIOD)) >> np.uint64(40)).astype(np.float64)
        self.sequence = torch.from_numpy(((top + 0.5) / (1 << 23) - 1.0).astype(np.float32))

    def tensor(self, shape, dtype, part, layer):
        """The part of a layer, scaled for products over its last dimension."""
        scale = torch.tensor(math.sqrt(3.0 / shape[-1]), dtype=torch.float32)
        rounded = (self.sequence * scale).to(dtype)
        tensor = torch.empty(shape, dtype=dtype)
        flat = tensor.view(-1)
        start = int(splitmix64(layer * 16 + PARTS[part]) % np.uint64(PERIOD))
        done = 0
        while done < flat.numel():
            n = min(flat.numel() - done, PERIOD - start)
            flat[done : done + n] = rounded[start : start + n]
            done, start = done + n, 0
        return tensor
