"""The torch back end: tiles cut anywhere give the dense result, and it serves where there is no C compiler."""

import logging

import numpy as np
import pytest
import torch

from tritonkeops import compiler
from tritonkeops.backends import reference
from tritonkeops.torch import Genred


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[1, 300, 1 << 22], ids=lambda n: f"tiles of {n}")
def tiles(request, monkeypatch):
    """How many numbers a tile may hold: one row at a time, a few, all."""
    monkeypatch.setattr(reference, "_TILE_NUMBERS", request.param)


@pytest.mark.parametrize("axis", [0, 1])
def test_tiles(tiles, axis, program, run):
    """More columns than a tile is wide, rows in pieces, a parameter, a batch."""
    x, y, p = uniform(2, 1, 7, 3), uniform(1, 3, 1030, 3, seed=1), uniform(3, 1, seed=2)
    y[..., -1, :] = 9  # the furthest, in the last tile
    args = [x, y, p] if axis == 1 else [y, x, p]
    aliases = ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)"]
    dense = torch.exp(-p[:, None] * ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1))
    if axis == 0:
        aliases = ["y = Vi(3)", "x = Vj(3)", "p = Pm(1)"]
    for name, k, wanted in (
        ("Sum", 0, dense.sum(-1, keepdim=True)),
        ("LogSumExp", 0, dense.logsumexp(-1, keepdim=True)),
        ("ArgMin", 0, dense.argmin(-1, keepdim=True)),
        ("KMin", 4, dense.sort(-1).values[..., :4]),
    ):
        (found,) = run(program("Exp(-p * SqDist(x, y))", aliases, name, axis, k), args, "torch")
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("category", ["Vi", "Vj", "Pm"])
@pytest.mark.parametrize("axis", [0, 1])
def test_formulas_of_one_category(category, axis, program, run):
    """What does not vary with an axis is repeated along it; an axis without variables has length 1."""
    x = uniform(*([] if category == "Pm" else [6]), 2)
    (found,) = run(program("Square(x)", [f"x = {category}(2)"], "Sum", axis), [x], "torch")
    reduced = category == ("Vj" if axis == 1 else "Vi")
    torch.testing.assert_close(found, (x**2).reshape(-1, 2).sum(0, keepdim=True) if reduced else (x**2).reshape(-1, 2))


def test_accumulators_may_be_wider_than_the_data(program, run):
    x, y = torch.zeros(1, 1), uniform(200_000, 1, dtype=torch.float32)
    (found,) = run(program("x + y", ["x = Vi(1)", "y = Vj(1)"]), [x, y], "torch", dtype_acc="float64")
    assert found.item() == np.float32(y.double().sum())


def test_without_a_compiler_torch_computes(monkeypatch, caplog):
    """One warning in all, and the same results."""
    x, y = uniform(5, 3), uniform(9, 3, seed=1)
    formula = "Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"]
    wanted = Genred(*formula, axis=1)(x, y), Genred(*formula, "ArgKMin", axis=1, opt_arg=2)(x, y)
    monkeypatch.setattr(compiler, "compiler", lambda: None)
    compiler._warn_no_compiler.cache_clear()
    with caplog.at_level(logging.WARNING, logger="tritonkeops"):
        torch.testing.assert_close(Genred(*formula, axis=1)(x, y), wanted[0])
        assert torch.equal(Genred(*formula, "ArgKMin", axis=1, opt_arg=2)(x, y), wanted[1])
    compiler._warn_no_compiler.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no C compiler found" in caplog.text
