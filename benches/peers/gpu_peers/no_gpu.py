"""What compiling and interpreting ask of a GPU, where there is none."""

from types import SimpleNamespace as NS

import torch


class NoGpuDriver:
    """Enough of a Triton driver to compile for one CUDA target where there is no GPU."""

    def __init__(self, arch):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def set_current_device(self, device):
        pass

    def get_active_torch_device(self):
        return torch.device("meta")

    def get_device_interface(self):
        return torch.cuda


def pretend_h100():
    """For compiling and interpreting only: what host code asks of the device."""
    from triton.runtime import driver

    driver.set_active(NoGpuDriver(90))
    props = NS(multi_processor_count=132, shared_memory_per_block_optin=232448, major=9, minor=0, name="NVIDIA H100")
    torch.cuda.get_device_properties = lambda *a, **k: props
    torch.cuda.get_device_capability = lambda *a, **k: (9, 0)
    torch.cuda.current_device = lambda: 0


class Specialized:
    """What `triton_kernels.specialize` makes of a kernel, for the interpreter: constants given, tuples in parts."""

    def __init__(self, fn, _module, constants, tuples, **_):
        self.fn, self.constants, self.tuples = fn, constants, tuples
        self.names = [name for arg in fn.arg_names if arg not in constants for name in tuples.get(arg, [arg])]

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            given = dict(zip(self.names, args)) | kwargs
            parts = {arg: tuple(given.pop(name) for name in names) for arg, names in self.tuples.items()}
            return self.fn[grid](**given, **parts, **self.constants)

        return launch
