"""Any reduction, differentiable: what is put around `library.reduce` for those whose derivatives need more than it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritonkeops.runtime.library import reduce
from tritonkeops.runtime.reducer import Recipe


def differentiable(recipe: Recipe, args: Sequence[Tensor], pattern: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, where somebody looks on: autograd, or a transform."""
    if len(args) != len(recipe.axes):
        raise ValueError(f"expected {len(recipe.axes)} tensors, got {len(args)}")
    args = _aligned(recipe, args)
    if recipe.outputs == ("index",):
        return reduce(recipe.reducer, [x.detach() for x in args], pattern)
    if recipe.values:
        return _select(recipe, args, pattern)
    (result,) = reduce(recipe.extended, args, pattern)
    return [result if recipe.extended == recipe.reducer else result[..., : recipe.dim].contiguous()]


def _aligned(recipe: Recipe, args: Sequence[Tensor]) -> list[Tensor]:
    """Parameters without the ones that no batch asks for, which a mapped dimension would turn into batches."""
    batch = max([0, *[x.ndim - 2 for x, axis in zip(args, recipe.axes, strict=True) if axis]])
    return [x if axis else _parameter(x, batch) for x, axis in zip(args, recipe.axes, strict=True)]


def _parameter(x: Tensor, batch: int) -> Tensor:
    if x.ndim == 0:
        return x.reshape(1)
    while x.ndim > batch + 1 and x.shape[0] == 1:
        x = x.squeeze(0)
    return x


def _select(recipe: Recipe, args: Sequence[Tensor], pattern: Sequence[Tensor]) -> list[Tensor]:
    """Values at the rows that a reduction finds: the formula is evaluated there, and differentiated.

    Where nothing is found (or only infinities), the result is a constant.
    """
    value, index = reduce(recipe.extended, [x.detach() for x in args], pattern)
    if not any(axis == "reduced" and x.shape[-2] == 0 for x, axis in zip(args, recipe.axes, strict=True)):
        value = torch.where(value.isfinite(), _at(recipe, args, index), value)
    return [value, index][: len(recipe.outputs)]


def _at(recipe: Recipe, args: Sequence[Tensor], index: Tensor) -> Tensor:
    """The formula's values at rows of the reduced axis, in the shape of `index`.

    Component c has rows of its own, so the formula is evaluated at the rows of each, as batches (D, K, *batch, M).
    """
    spread = index  # (*batch, M, K, D)
    if not recipe.k:
        spread = index.unsqueeze(-2)
    elif recipe.inner == 1:
        spread = index.unsqueeze(-1)
    places = spread.movedim((-1, -2), (0, 1)).clamp(min=0)[..., None]
    batch = spread.shape[:-3]
    moved = [_rows(x, places, batch) if axis == "reduced" else x for x, axis in zip(args, recipe.axes, strict=True)]
    (values,) = reduce(recipe.values, moved)
    each = torch.diagonal(values, dim1=0, dim2=-1)  # (K, *batch, M, D)
    return each.movedim(0, -2).reshape(index.shape)


def _rows(x: Tensor, places: Tensor, batch: Sequence[int]) -> Tensor:
    """Rows of (*batch, N, dim) at places (D, K, *batch, M, 1)."""
    whole = x.expand(*places.shape[:2], *batch, *x.shape[-2:])
    return whole.gather(-2, places.expand(*places.shape[:-1], x.shape[-1]))  # take_along_dim has no dynamic vmap
