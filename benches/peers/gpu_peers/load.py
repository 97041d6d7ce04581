"""Peers' sources as they come out of their wheels, executed with stubs for what the kernels do not use."""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types

from .inputs import Unavailable


class _StubMeta(type):
    """The type of a stub: any attribute is another stub, any subscript or union is itself."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return stub(name)

    def __or__(cls, other):
        return cls

    __ror__ = __or__

    def __getitem__(cls, _):
        return cls

    def __call__(cls, *a, **k):  # as a decorator it leaves its function alone
        return a[0] if len(a) == 1 and callable(a[0]) and not k else cls


def stub(name):
    """Stands for what a kernel file imports but the kernel does not use."""
    return _StubMeta(name, (), {})


def stub_attribute(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return stub(name)


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Every import below `root` succeeds: a fixed module where one is given, else a stub."""

    def __init__(self, root, fixed):
        self.root, self.fixed = root, fixed

    def find_spec(self, name, path=None, target=None):
        if name == self.root or name.startswith(self.root + "."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        given = self.fixed.get(spec.name, {})
        module.__dict__.update(given)
        module.__getattr__ = stub_attribute
        return module

    def exec_module(self, module):
        pass


def load_file(path, name, root, fixed):
    """Execute one extracted source file with stubs for everything it imports below `root`."""
    if not os.path.exists(path):
        raise Unavailable(f"{os.path.basename(path)} was not fetched")
    finder = _StubFinder(root, fixed)
    sys.meta_path.insert(0, finder)
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.meta_path.remove(finder)


@functools.lru_cache(maxsize=None)
def parameters(fn):
    return tuple(inspect.signature(fn).parameters.values())


def by_name(fn, values):
    """Call fn with the arguments its signature names; says which one it lacks."""
    out = {}
    for p in parameters(fn):
        if p.name in values:
            out[p.name] = values[p.name]
        elif p.default is inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_KEYWORD:
            raise Unavailable(f"{fn.__name__} wants an unknown argument '{p.name}'")
    return fn(**out)
