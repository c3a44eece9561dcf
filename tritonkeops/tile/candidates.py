"""Schedules worth trying beside the chooser's: those that differ from it a little, in one choice or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any, TypeVar

from tritonkeops.tile.schedule import CpuSchedule, GpuSchedule, Schedule

AnySchedule = TypeVar("AnySchedule", bound=Schedule)
Choices = dict[str, list[int]]
"""Other values of a schedule's fields."""
_WARP = 32
_REGISTERS = (0, 128, 168)  # of a thread: those that four, or three, blocks of four warps can have


def candidates(first: Schedule, splits: Sequence[int] = ()) -> list[Schedule]:
    """The schedule and its neighbours, nearest first; with j in so many `splits` too."""
    if isinstance(first, GpuSchedule):
        return [*gpu_candidates(first, splits)]
    assert isinstance(first, CpuSchedule)
    return [*cpu_candidates(first, splits)]


def cpu_candidates(first: CpuSchedule, splits: Sequence[int] = ()) -> list[CpuSchedule]:
    """Lanes, and rows j at a time: of a register block, twice as many would not fit."""
    blocked = first.width < first.lanes or first.form == "guarded"
    unrolls = {first.unroll // 2, first.unroll - 2, first.unroll + 2} if blocked else _around(first.unroll)
    choices = {"lanes": _around(first.lanes), "unroll": sorted(n for n in unrolls if n > 0)}

    def whole(schedule: CpuSchedule) -> CpuSchedule:
        return schedule if blocked else replace(schedule, width=schedule.lanes)

    found = (whole(schedule) for schedule in _neighbours(first, choices, {"splits": list(splits)}))
    return [schedule for schedule in found if schedule.lanes % schedule.width == 0]


def gpu_candidates(first: GpuSchedule, splits: Sequence[int] = ()) -> list[GpuSchedule]:
    """Tiles, warps and stages; then registers and parts of j."""
    choices: Choices = {name: _around(getattr(first, name)) for name in ("block_i", "block_j", "num_warps")}
    if first.form == "dot":
        choices["num_stages"] = [n for n in (first.num_stages - 1, first.num_stages + 1) if n > 0]
    alone: Choices = {"registers": [n for n in _REGISTERS if n != first.registers], "splits": list(splits)}
    found = (_with_whole_sums(first, schedule) for schedule in _neighbours(first, choices, alone))
    return [schedule for schedule in found if schedule == first or _FITS[first.form](first, schedule)]


def _around(value: int) -> list[int]:
    """Half and twice as much."""
    return [n for n in (value // 2, value * 2) if n]


def _neighbours(first: AnySchedule, choices: Choices, alone: Choices) -> Iterator[AnySchedule]:
    """The schedule, then those with one field changed, then with two of `choices`."""
    yield first
    for names in [(name,) for name in (*choices, *alone)] + list(combinations(choices, 2)):
        for values in product(*((choices | alone)[name] for name in names)):
            changes: dict[str, Any] = dict(zip(names, values, strict=True))
            yield replace(first, **changes)


def _with_whole_sums(first: GpuSchedule, schedule: GpuSchedule) -> GpuSchedule:
    """With blocks of sums of as many tiles as they were; of as many rows where products add up the rows of a tile."""
    if first.form == "dot" and first.block_sum % schedule.block_j == 0:
        return schedule
    return replace(schedule, block_sum=first.block_sum // first.block_j * schedule.block_j)


# What forms allow -----------------------------------------------------------------------------------------------------


def _of_columns(first: GpuSchedule, schedule: GpuSchedule) -> bool:
    """Each thread owns whole columns if it did, and about as many pairs of a tile as before."""
    threads, before = _WARP * schedule.num_warps, _WARP * first.num_warps
    pairs = schedule.block_i * schedule.block_j * before / (first.block_i * first.block_j * threads)
    owned = schedule.block_i >= threads or first.block_i < before
    return owned and 0.5 <= pairs <= 2 and schedule.num_warps <= 16


def _of_one_warp(first: GpuSchedule, schedule: GpuSchedule) -> bool:
    """Testing a tile is a vote among its threads, which takes a barrier unless they are one warp."""
    return schedule.num_warps == first.num_warps and _of_columns(first, schedule)


def _of_products(first: GpuSchedule, schedule: GpuSchedule) -> bool:
    """The shapes that tensor cores take, in tiles that fit into registers."""
    sizes, tile = (32, 64, 128, 256), (schedule.block_i, schedule.block_j)
    return set(tile) <= set(sizes) and schedule.num_warps in (4, 8) and schedule.num_stages <= 4


_FITS: dict[str, Callable[[GpuSchedule, GpuSchedule], bool]] = {
    "simt": _of_columns,
    "looped": _of_columns,
    "guarded": _of_one_warp,
    "dot": _of_products,
}
