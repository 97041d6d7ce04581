"""The numbers of benches/common/data.rs once more: bit for bit the same tensors, without passing them through files."""

import math

import torch

PERIOD = 4_194_301
PARTS = {"gate_up": 0, "down": 1, "shared_gate_up": 2, "shared_down": 3, "hidden": 7, "logits": 8}


def signed(x):
    return x - (1 << 64) if x >> 63 else x


def shifted(z, bits):
    """Right, without the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(counter):
    """64 bits in int64, which wraps."""
    z = (counter + 1) * signed(0x9E3779B97F4A7C15)
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return z ^ shifted(z, 31)


def start_of(part, layer):
    """Where a tensor's window begins."""
    z = splitmix64(torch.tensor(layer * 16 + PARTS[part], dtype=torch.int64)).item()
    return z % (1 << 64) % PERIOD


class Source:
    """One periodic sequence in (-1, 1); a tensor is a window of it."""

    def __init__(self, device="cpu"):
        top = shifted(splitmix64(torch.arange(PERIOD)), 40).double()
        self.sequence = ((top + 0.5) / (1 << 23) - 1.0).float().to(device)

    def tensor(self, shape, dtype, part, layer, scale=None):
        """The part of a layer, scaled for products over its last dimension unless told otherwise."""
        scale = torch.tensor(math.sqrt(3.0 / shape[-1]) if scale is None else scale, dtype=torch.float32)
        rounded = (self.sequence * scale.to(self.sequence.device)).to(dtype)
        tensor = torch.empty(shape, dtype=dtype, device=self.sequence.device)
        flat = tensor.view(-1)
        start, done = start_of(part, layer), 0
        while done < flat.numel():
            n = min(flat.numel() - done, PERIOD - start)
            flat[done : done + n] = rounded[start : start + n]
            done, start = done + n, 0
        return tensor
