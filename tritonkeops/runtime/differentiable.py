"""Any reduction, differentiable: what is put around `library.reduce` for those whose derivatives need more than it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritonkeops.runtime.call import parameter_shape
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
    return [
        x if axis else x.reshape(parameter_shape(x.shape, batch)) for x, axis in zip(args, recipe.axes, strict=True)
    ]


def _select(recipe: Recipe, args: Sequence[Tensor], pattern: Sequence[Tensor]) -> list[Tensor]:
    """Values at the rows that a reduction finds: the formula is evaluated there, and differentiated.

    Where nothing is found (or only infinities), the result is a constant.
    """
    value, index = reduce(recipe.extended, [x.detach() for x in args], pattern)
    if not any(axis == "reduced" and x.shape[-2] == 0 for x, axis in zip(args, recipe.axes, strict=True)):
        found = value.isfinite() & (index >= 0)
        value = torch.where(found, _at(recipe, args, index, found), value)
    return [value, index][: len(recipe.outputs)]


def _at(recipe: Recipe, args: Sequence[Tensor], index: Tensor, found: Tensor) -> Tensor:
    """The formula's values at rows of the reduced axis, in the shape of `index`.

    Component c has rows of its own, so the formula is evaluated at the rows of each, as batches (D, K, *batch, M). All
    variables have a row for each of these: where nothing is found, no derivative reaches them, not even an infinite
    one times 0.
    """

    def by_row(x: Tensor) -> Tensor:
        """(D, K, *batch, M, 1) of (*batch, M[, K][, D])."""
        spread = x.unsqueeze(-2) if not recipe.k else x if recipe.inner > 1 else x.unsqueeze(-1)  # (*batch, M, K, D)
        return spread.movedim((-1, -2), (0, 1))[..., None]

    places, there = by_row(index).clamp(min=0), by_row(found)
    rows = [_rows(x, places, axis) for x, axis in zip(args, recipe.axes, strict=True)]
    (values,) = reduce(recipe.values, [torch.where(there, x, x.detach()) for x in rows])
    each = torch.diagonal(values.expand(*places.shape[:-1], recipe.inner), dim1=0, dim2=-1)  # (K, *batch, M, D)
    return each.movedim(0, -2).reshape(index.shape)


def _rows(x: Tensor, places: Tensor, axis: str) -> Tensor:
    """The row of a variable that meets each row i, (D, K, *batch, M, dim): that at its place if the axis is reduced."""
    shape = (*places.shape[:-1], x.shape[-1])
    if axis == "reduced":
        whole = x.expand(*shape[:-2], *x.shape[-2:])
        return whole.gather(-2, places.expand(shape))  # take_along_dim has no dynamic vmap
    return (x if axis else x.unsqueeze(-2)).expand(shape)
