"""TRITONKEOPS_AUTOTUNE=measure: the fastest schedule is measured once, kept, and changes no result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tritonkeops import cache
from tritonkeops.backends.c.build import compiler
from tritonkeops.runtime import tuning
from tritonkeops.tile.schedule import CpuSchedule, candidates
from tritonkeops.torch import Genred

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
ALIASES = ["x = Vi(2)", "y = Vj(2)"]


@pytest.fixture(autouse=True)
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "measure")
    monkeypatch.setattr(tuning, "candidates", lambda first: candidates(first)[:3])
    return tmp_path


def data(M: int = 300, N: int = 200) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n, 2, generator=generator) for n in (M, N)]


def call(op: str = "Sum", k: int | None = None, args: list[Tensor] | None = None) -> list[Tensor]:
    result = Genred("SqDist(x,y)", ALIASES, op, axis=1, opt_arg=k)(*(args or data()))
    return list(result) if isinstance(result, tuple) else [result]


def answers(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.txt"))]


@pytest.mark.parametrize("op,k", [("Sum", None), ("Min_ArgMin", None), ("KMin", 3)])
def test_the_result_is_the_same(op: str, k: int | None, monkeypatch: pytest.MonkeyPatch, measuring: Path) -> None:
    tuned = call(op, k)
    assert len(answers(measuring)) == 1
    monkeypatch.delenv("TRITONKEOPS_AUTOTUNE")
    for a, b in zip(tuned, call(op, k), strict=True):
        torch.testing.assert_close(a, b)


def test_the_answer_is_kept_and_used(measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call()
    (answer,) = answers(measuring)
    assert CpuSchedule(**answer) in candidates(CpuSchedule(**answer))  # type: ignore[arg-type]
    monkeypatch.setattr(tuning, "_time", lambda *args: pytest.fail("measured again"))
    call()


def test_what_is_kept_decides(measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest candidate, once kept, is the one that runs."""
    times = iter(range(100, 0, -1))
    tried: list[CpuSchedule] = []

    def last_is_best(program: object, target: object, schedule: CpuSchedule, *rest: object) -> float:
        tried.append(schedule)
        return next(times)

    monkeypatch.setattr(tuning, "_time", last_is_best)
    call()
    (answer,) = answers(measuring)
    assert CpuSchedule(**answer) == tried[-1] != tried[0]  # type: ignore[arg-type]


def test_other_sizes_are_measured_anew(measuring: Path) -> None:
    call()
    call(args=data(290, 190))
    assert len(answers(measuring)) == 1, "one class of sizes"
    call(args=data(5, 3000))
    assert len(answers(measuring)) == 2


def test_spoilt_answers_are_measured_anew(measuring: Path) -> None:
    call()
    (path,) = measuring.glob("*.txt")
    path.write_text("{")
    call()
    assert len([entry for entry in cache.entries() if entry.title.startswith("schedule")]) == 1


def test_an_answer_of_another_version_is_measured_anew(measuring: Path) -> None:
    """A kept schedule whose fields are not today's must not stop a call."""
    call()
    (path,) = measuring.glob("*.txt")
    (record,) = [p for p in measuring.glob("*.json") if path.name in p.read_text()]
    cache.keep(record.stem, b'{"form": "simt", "colour": "blue"}', ".txt", "schedule")
    call()


@pytest.mark.parametrize("value", ["off", "", "sometimes"])
def test_it_is_off_unless_asked_for(value: str, measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", value)
    call()
    assert answers(measuring) == []


def test_candidates_are_distinct_and_start_with_the_chooser_s() -> None:
    first = CpuSchedule(form="simt", lanes=16, width=16, unroll=4)
    found = candidates(first)
    assert found[0] == first and len(set(found)) == len(found) > 3
