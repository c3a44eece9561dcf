"""The schedules that are tried beside the chooser's: valid ones, near it, of the same results."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from tritonkeops.backends.c.build import compiler
from tritonkeops.backends.kernel import Layout
from tritonkeops.compiler import Program, Target
from tritonkeops.tile.candidates import candidates, cpu_candidates, gpu_candidates
from tritonkeops.tile.ir import verify
from tritonkeops.tile.schedule import CpuSchedule, GpuSchedule, Schedule

SIMT = GpuSchedule(form="simt", block_i=512, block_j=16, num_warps=4, block_sum=1024)
LISTS = GpuSchedule(form="guarded", block_i=64, block_j=32, num_warps=1)
PRODUCTS = GpuSchedule(form="dot", block_i=128, block_j=64, num_warps=4, num_stages=2)
C = [
    CpuSchedule(form="simt", lanes=64, width=64, unroll=4),
    CpuSchedule(form="dot", lanes=64, width=16, unroll=10),
    CpuSchedule(form="guarded", lanes=16, width=16, unroll=8),
    CpuSchedule(form="simt", lanes=4, width=4, unroll=1),
    CpuSchedule(form="dot", lanes=8, width=4, unroll=2),
]
FORMULAS = {
    "simt": ("Exp(-SqDist(x,y))*b", 3, "Sum", 0),
    "dot": ("Exp(-SqDist(x,y))*b", 20, "Sum", 0),
    "guarded": ("SqDist(x,y)+b", 3, "KMin_ArgKMin", 3),
}
ALL = [SIMT, replace(SIMT, form="looped"), LISTS, PRODUCTS, *C]


def differences(a: Schedule, b: Schedule) -> set[str]:
    return {f.name for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)}


def program_of(form: str) -> Program:
    formula, dim, op, k = FORMULAS[form]
    return Program(formula, [f"x=Vi({dim})", f"y=Vj({dim})", "b=Vj(1)"], op, 1, k, None)


@pytest.mark.parametrize("first", ALL, ids=str)
def test_the_chooser_s_comes_first_and_all_are_distinct(first: Schedule) -> None:
    found = candidates(first)
    assert found[0] == first and len(set(found)) == len(found) > 3


@pytest.mark.parametrize("first", ALL, ids=str)
def test_parts_of_j_are_tried_where_they_are_asked_for(first: Schedule) -> None:
    assert {schedule.splits for schedule in candidates(first)} == {0}
    extra = [schedule for schedule in candidates(first, [1, 4]) if schedule.splits]
    assert extra == [replace(first, splits=1), replace(first, splits=4)]


@pytest.mark.parametrize("first", C, ids=str)
def test_lanes_are_whole_steps(first: CpuSchedule) -> None:
    for schedule in cpu_candidates(first):
        assert schedule.width == (schedule.lanes if first.form == "simt" else first.width)
        assert schedule.lanes % schedule.width == 0
        assert schedule.unroll >= 1 and differences(first, schedule) <= {"lanes", "width", "unroll"}


@pytest.mark.parametrize("first", [SIMT, LISTS, PRODUCTS], ids=str)
def test_tiles_of_gpus_are_powers_of_two_and_near(first: GpuSchedule) -> None:
    for schedule in gpu_candidates(first):
        changed = differences(first, schedule) - {"block_sum"}
        assert len(changed) <= 2 and changed <= {"block_i", "block_j", "num_warps", "num_stages", "registers"}
        assert all((n & (n - 1)) == 0 for n in (schedule.block_i, schedule.block_j, schedule.num_warps))
        assert schedule.block_i * schedule.block_j >= 32 * schedule.num_warps
    assert any(len(differences(first, schedule) - {"block_sum"}) == 2 for schedule in gpu_candidates(first))


def test_blocks_of_sums_hold_as_many_tiles() -> None:
    assert {schedule.block_sum / schedule.block_j for schedule in gpu_candidates(SIMT)} == {64}
    assert {schedule.block_sum for schedule in gpu_candidates(replace(SIMT, block_sum=0))} == {0}
    assert {schedule.block_sum for schedule in gpu_candidates(replace(PRODUCTS, block_sum=256))} == {256}
    short = {(schedule.block_j, schedule.block_sum) for schedule in gpu_candidates(replace(PRODUCTS, block_sum=64))}
    assert short == {(32, 64), (64, 64), (128, 128)}


def test_threads_keep_as_many_pairs_or_half_or_twice() -> None:
    tiles = [(s.block_i * s.block_j, s.num_warps) for s in gpu_candidates(SIMT)]
    assert {pairs // (32 * warps) for pairs, warps in tiles} == {32, 64, 128}


def test_threads_keep_whole_columns() -> None:
    assert all(schedule.block_i >= 32 * schedule.num_warps for schedule in gpu_candidates(SIMT))
    narrow = replace(SIMT, block_i=128)
    assert all(schedule.block_i >= 32 * schedule.num_warps for schedule in gpu_candidates(narrow))
    assert all(schedule.num_stages == 1 for schedule in gpu_candidates(SIMT))


def test_few_rows_have_candidates_too() -> None:
    few = replace(SIMT, block_i=16, block_j=64, packed=False)
    assert {schedule.block_j for schedule in gpu_candidates(few)} >= {32, 64, 128}


def test_sorted_lists_stay_with_one_warp() -> None:
    assert {schedule.num_warps for schedule in gpu_candidates(LISTS)} == {1}


@pytest.mark.parametrize("block_i,block_j,stages", [(128, 64, 2), (256, 256, 4), (32, 32, 1)])
def test_products_have_the_shapes_of_tensor_cores(block_i: int, block_j: int, stages: int) -> None:
    first = replace(PRODUCTS, block_i=block_i, block_j=block_j, num_stages=stages)
    found = gpu_candidates(first)
    assert {n for s in found for n in (s.block_i, s.block_j)} <= {32, 64, 128, 256}
    assert {s.num_warps for s in found} == {4, 8} and {s.num_stages for s in found} <= {1, 2, 3, 4}
    assert {s.num_stages for s in found} > {stages}


@pytest.mark.parametrize("form", FORMULAS)
@pytest.mark.parametrize("backend", ["c", "triton"])
def test_programs_on_candidates_are_valid(form: str, backend: str) -> None:
    program, target = program_of(form), Target(backend=backend)
    for schedule in candidates(program.tile(target).schedule, [2]):
        verify(program.tile(target, schedule))


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("form", FORMULAS)
def test_results_on_candidates_are_the_same(form: str) -> None:
    """Within rounding, at sizes that are no multiples of anything; on several threads, in parts of j."""
    from tests.conftest import run_program

    program, generator = program_of(form), torch.Generator().manual_seed(0)
    dim = FORMULAS[form][1]
    args = [torch.rand(n, d, generator=generator) for n, d in ((77, dim), (203, dim), (203, 1))]
    first = program.tile(Target()).schedule
    expected = run_program(program, args, "torch")
    for schedule in candidates(first, [1, 2, 7]):
        changes = {name: getattr(schedule, name) for name in differences(first, schedule)}
        for a, b in zip(run_program(program, args, threads=2, **changes), expected, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, s=schedule: f"{s}: {text}")


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("asked,threads,parts", [(0, 1, 1), (0, 2, 4), (1, 2, 1), (7, 1, 7), (7, 2, 7)])
def test_c_obeys_the_parts_of_j(asked: int, threads: int, parts: int) -> None:
    program, args = program_of("simt"), [torch.rand(n, d) for n, d in ((3, 3), (9000, 3), (9000, 1))]
    schedule = replace(program.tile(Target()).schedule, splits=asked)
    launch = program.kernel(Target(), schedule).prepare(args, Layout((), 3, 9000))
    assert launch._splits(threads) == parts  # type: ignore[attr-defined]


def test_triton_obeys_the_parts_of_j_and_the_stages() -> None:
    pytest.importorskip("triton")
    program, target = program_of("simt"), Target(backend="triton")
    schedule = replace(program.tile(target).schedule, block_i=64, block_j=16, block_sum=0, num_stages=3)
    kernel = program.triton_kernel(target, schedule)
    assert {role: kernel.options(role)["num_stages"] for role in ("pack_j", "reduce")} == {"pack_j": 1, "reduce": 3}
    layout = Layout((5,), 100, 100)
    for splits, expected in ((0, (10, 112, 1)), (1, (10, 112, 1)), (2, (10, 64, 2)), (50, (10, 16, 7))):
        made = program.triton_kernel(target, replace(schedule, splits=splits))
        assert made.parts(layout, 132) == expected
    masked = replace(target, pattern="band")
    assert program.triton_kernel(masked, replace(schedule, splits=2)).parts(layout, 132) == (10, 112, 1)
