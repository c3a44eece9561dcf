"""Triton kernels on a GPU: python -m pytest -m gpu tests/gpu

`run` and `genred` are those of tests/interpreted, for a device: CPU tensors go there, with the memory around them, and
results come back.
"""

import os

import pytest
import torch

from tests.conftest import run_program
from tritonkeops.torch import Genred

DEVICE = "cuda"
ALL = bool(os.environ.get("TRITONKEOPS_GPU_ALL"))
"""Whether the whole corpus runs; without, a sample that compiles in a few minutes."""
SAMPLES = {
    "test_many_operators": 6, "test_operators": 6, "test_reductions": 8, "test_j_is_split_over_programs": 6,
    "test_few_rows": 6, "test_formulas": 6, "test_special_points": 2, "test_accurate_sums": 4,
    "test_numbers_of_neighbours": 4, "test_names_of_the_kernel": 1, "test_strides": 4, "test_nothing_to_do": 4,
    "test_random_formulas": 0, "test_random_formulas_of_long_vectors": 0,
}  # fmt: skip
SAMPLED = 2  # of the tests of the corpus that are not named above


def pytest_collection_modifyitems(config, items):
    """Leave the corpus' tests out but for a few of each, evenly spread."""
    groups = {}
    for item in items:
        if item.function.__module__.endswith("test_corpus") and item.path.parent.name == "gpu":
            groups.setdefault(item.function.__name__, []).append(item)
    left_out = set()
    for name, group in groups.items():
        count = len(group) if ALL else min(len(group), SAMPLES.get(name, SAMPLED))
        kept = {len(group) * n // count for n in range(count)}
        left_out |= {item for n, item in enumerate(group) if n not in kept}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def flat(x):
    """All the memory that a tensor is a view of."""
    storage = x.untyped_storage()
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(storage, 0, (storage.nbytes() // x.itemsize,), (1,))


def moved(x, device=DEVICE):
    """The tensor on a device, with the same strides and the memory around it."""
    return flat(x).to(device, copy=True).as_strided(x.shape, x.stride(), x.storage_offset())


def brought_back(given, computed):
    """What was computed into `computed`, and all around it, in the tensor that it is a copy of."""
    flat(given).copy_(flat(computed))
    return given


def run_there(program, args, backend="triton", out=None, device=DEVICE, **how):
    if backend != "triton":
        return run_program(program, args, backend, out=out, **how)
    there = out and [moved(x, device) for x in out]
    outputs = run_program(program, [moved(x, device) for x in args], backend, out=there, **how)
    assert not any((x == -99).any() for x in outputs), "a result was not written"
    return [brought_back(x, y) for x, y in zip(out, outputs, strict=True)] if out else [x.cpu() for x in outputs]


class There(Genred):
    """Its calls are computed on a device."""

    where = DEVICE

    def __call__(self, *args, out=None, **options):
        given = out if isinstance(out, tuple) else () if out is None else (out,)
        there = tuple(moved(x, self.where) for x in given) or None
        args = [moved(x, self.where) for x in args]
        result = super().__call__(*args, out=there[0] if there and len(there) == 1 else there, **options)
        results = result if isinstance(result, tuple) else (result,)
        pairs = zip(given, results, strict=True) if given else ()
        results = tuple(brought_back(x, y) for x, y in pairs) or tuple(x.cpu() for x in results)
        return results if len(results) > 1 else results[0]


@pytest.fixture(scope="session")
def run():
    """run(program, args, backend="triton", **how): as in the other tests, on the device, in the tiles that it takes."""
    return run_there


@pytest.fixture(scope="session")
def genred():
    """tritonkeops.torch.Genred, of which all calls are computed on the device."""
    return There
