"""TRITONKEOPS_AUTOTUNE: better schedules are found once, kept, and change no result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tritonkeops
from tritonkeops import cache
from tritonkeops.backends.c.build import compiler
from tritonkeops.backends.kernel import Layout
from tritonkeops.compiler import Program, Target
from tritonkeops.runtime import tuning
from tritonkeops.runtime.tuning import Task, Trial, choose, explore, find, tuned
from tritonkeops.tile.candidates import candidates
from tritonkeops.tile.schedule import CpuSchedule, Schedule
from tritonkeops.torch import Genred

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
ALIASES = ["x = Vi(2)", "y = Vj(2)"]
FIRST = CpuSchedule(form="simt", lanes=16, width=16, unroll=4)


@pytest.fixture(autouse=True)
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, few candidates and few rounds."""
    monkeypatch.setattr(tuning, "_ENOUGH", 0.0)
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "measure")
    monkeypatch.setattr(tuning, "candidates", lambda first, splits=(): candidates(first, splits)[:3])
    return tmp_path


@pytest.fixture
def fake_times(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], list[int]]:
    """fake_times(seconds): as if the n-th candidate took seconds(n); returns the numbers as they are run."""

    def install(seconds: Callable[[int], float]) -> list[int]:
        runs: list[object] = []
        order: list[int] = []

        def fake(run: object, backend: str) -> float:
            if run not in runs:
                runs.append(run)
            order.append(runs.index(run))
            return seconds(order[-1])

        monkeypatch.setattr(tuning, "_seconds", fake)
        return order

    return install


def data(M: int = 300, N: int = 200) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n, 2, generator=generator) for n in (M, N)]


def call(op: str = "Sum", k: int | None = None, args: list[Tensor] | None = None, **options: object) -> list[Tensor]:
    kernel = Genred("SqDist(x,y)", ALIASES, op, axis=1, opt_arg=k)
    result = kernel(*(args or data()), **options)  # type: ignore[arg-type]
    return list(result) if isinstance(result, tuple) else [result]


def task(rows: int = 300, cols: int = 200, where: str = "cpu") -> Task:
    program = Program("SqDist(x,y)", ALIASES, "Sum", 1, 0, None)
    return Task(program, Target(), Layout((), rows, cols), where, torch.device("cpu"))


def answers(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.txt"))]


# What it does to a call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op,k", [("Sum", None), ("Min_ArgMin", None), ("KMin", 3)])
def test_the_result_is_the_same(op: str, k: int | None, monkeypatch: pytest.MonkeyPatch, measuring: Path) -> None:
    tuned = call(op, k)
    assert len(answers(measuring)) == 1
    monkeypatch.delenv("TRITONKEOPS_AUTOTUNE")
    for a, b in zip(tuned, call(op, k), strict=True):
        torch.testing.assert_close(a, b)


def test_the_fastest_runs(fake_times: Callable[..., list[int]], measuring: Path) -> None:
    fake_times(lambda n: 3.0 - n)
    call()
    (answer,) = answers(measuring)
    third = tuning.candidates(task().first)[2]
    assert answer == asdict(third)


@pytest.mark.parametrize("value", ["off", ""])
def test_it_is_off_unless_asked_for(value: str, measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", value)
    call()
    assert answers(measuring) == []


def test_other_words_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "sometimes")
    with pytest.raises(ValueError, match="TRITONKEOPS_AUTOTUNE='sometimes': expected one of off, static, measure"):
        call()


def test_patterns_are_not_tuned(measuring: Path) -> None:
    call(mask="i>j")
    assert answers(measuring) == []


def test_nothing_is_tried_while_a_graph_is_captured(measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_capturing", lambda: True)
    call()
    assert answers(measuring) == []


# What is kept ---------------------------------------------------------------------------------------------------------


def test_the_answer_is_kept_and_used(measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call()
    (answer,) = answers(measuring)
    assert CpuSchedule(**answer) in candidates(task().first)  # type: ignore[arg-type]
    monkeypatch.setattr(tuning, "explore", lambda *args: pytest.fail("measured again"))
    call()
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "static")
    call()


def test_other_sizes_are_measured_anew(measuring: Path) -> None:
    call()
    call(args=data(290, 190))
    assert len(answers(measuring)) == 1, "one class of sizes"
    call(args=data(5, 3000))
    assert len(answers(measuring)) == 2


@pytest.mark.parametrize("change", ["version", "threads", "compiler", "default"])
def test_other_circumstances_are_measured_anew(
    change: str, measuring: Path, monkeypatch: pytest.MonkeyPatch, fake_times: Callable[..., list[int]]
) -> None:
    fake_times(lambda n: 1.0)
    call()
    if change == "version":
        monkeypatch.setattr(tritonkeops, "__version__", "0.0.0")
        monkeypatch.setattr(tuning, "_versions", tuning._versions.__wrapped__)
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    elif change == "compiler":
        monkeypatch.setattr(tuning, "identity", lambda: "another")
    else:  # one that has the old default among its candidates
        first = task().first
        assert isinstance(first, CpuSchedule)
        twice = replace(first, lanes=2 * first.lanes, width=2 * first.width)
        assert first in tuning.candidates(twice)
        monkeypatch.setattr("tritonkeops.compiler.choose_cpu", lambda *args, **options: twice)
    assert task().answer(measured=True) is None
    call()
    assert len([entry for entry in cache.entries() if entry.title.startswith("schedule of")]) == 2


SPOILT = [
    b"{",
    b"[]",
    b"3",
    b"\xff",
    b'{"form": "simt", "colour": "blue"}',
    json.dumps(asdict(replace(FIRST, lanes=1 << 20, width=1 << 20))).encode(),  # a schedule, but none of ours
    json.dumps(asdict(FIRST) | {"lanes": "16"}).encode(),
]


@pytest.mark.parametrize("content", SPOILT)
def test_answers_that_could_not_be_ours_are_ignored(content: bytes) -> None:
    asked = task()
    asked.keep(asked.first, measured=True)
    assert asked.answer(measured=True) == asked.first
    cache.keep(asked._key(measured=True), content, ".txt", "schedule")
    assert asked.answer(measured=True) is None
    call()


def test_a_file_that_was_cut_short_is_ignored(measuring: Path) -> None:
    asked = task()
    asked.keep(asked.first, measured=True)
    (path,) = measuring.glob("*.txt")
    path.write_text(path.read_text()[:10])
    assert asked.answer(measured=True) is None


SHARING = """
import sys
from dataclasses import replace
from tests.runtime.test_tuning import task
asked = task()
mine = replace(asked.first, unroll=asked.first.unroll * int(sys.argv[1]))
both = [replace(asked.first, unroll=asked.first.unroll * n) for n in (1, 2)]
for _ in range(50):
    asked.keep(mine, measured=True)
    assert asked.answer(measured=True) in both
"""


def test_processes_at_once() -> None:
    """Two that keep different answers under one key read one of them, whole, at any time."""
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen([sys.executable, "-c", SHARING, n], cwd=root) for n in ("1", "2")]
    assert [process.wait() for process in processes] == [0, 0]


# How they are compared ------------------------------------------------------------------------------------------------


def trials(*seconds: float | None) -> list[Trial]:
    return [Trial(replace(FIRST, unroll=n + 1), seconds=time) for n, time in enumerate(seconds)]


@pytest.mark.parametrize(
    "seconds,best",
    [
        ((1.0, 0.9, 0.8), 2),
        ((1.0, 0.98, 2.0), 0),  # not clearly faster
        ((1.0, 0.96), 1),
        ((None, 0.9, 0.8), 2),  # the default did not run
        ((1.0, None), 0),
        ((None, None), 0),
    ],
)
def test_the_fastest_is_chosen_if_it_is_clearly_faster(seconds: tuple[float | None, ...], best: int) -> None:
    given = trials(*seconds)
    assert choose(given) is given[best]


def test_candidates_take_turns_and_the_best_go_on(
    fake_times: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what slows the machine for a while slows all."""
    monkeypatch.setattr(tuning, "_FINALISTS", 1)
    order = fake_times(lambda n: 3.0 - n)
    explore(task(), data())
    assert order[:12] == [0, 1, 2] * 4
    assert order[12:] == [0, 2] * 8, "the default and the best"


def test_the_best_run_counts(fake_times: Callable[..., list[int]]) -> None:
    times = iter([5.0, 4.0, 3.0, 1.0, 2.0] + [6.0] * 1000)
    fake_times(lambda n: next(times))
    assert [trial.seconds for trial in explore(task(), data())] == [1.0, 2.0, 3.0]


def test_what_cannot_be_compiled_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tuning.candidates(task().first)[1]
    kernel = Program.kernel

    def fail(program: Program, target: Target, schedule: Schedule | None = None) -> object:
        if schedule == broken:
            raise RuntimeError("no registers\nat all")
        return kernel(program, target, schedule)

    monkeypatch.setattr(Program, "kernel", fail)
    found, best = find(task(), data())
    assert found[1] == Trial(broken, failure="RuntimeError: no registers") and best.schedule != broken
    assert all(trial.seconds for trial in found if trial.schedule != broken)


def test_long_calls_are_measured_on_their_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times are those of the whole call all the same."""
    monkeypatch.setitem(tuning._MOST_PAIRS, "c", 1000)
    monkeypatch.setattr(tuning, "_full_rows", lambda task: 30)
    (x, y), layout = tuning._sample(task(), data())
    assert (x.shape, y.shape, layout.rows) == ((30, 2), (200, 2), 30)
    assert torch.equal(x, data()[0][:30])
    monkeypatch.setattr(tuning, "_seconds", lambda run, backend: 1.0)
    assert {trial.seconds for trial in explore(task(), data())} == {10.0}


def test_rows_of_the_result_are_left_out_whichever_axis_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tuning._MOST_PAIRS, "c", 1000)
    monkeypatch.setattr(tuning, "_full_rows", lambda task: 30)
    program = Program("SqDist(x,y)", ALIASES, "Sum", 0, 0, None)
    (x, y), _ = tuning._sample(replace(task(200, 300), program=program), data())
    assert (len(x), len(y)) == (300, 30)


def test_parts_of_j_are_tried_where_rows_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[int]] = []
    monkeypatch.setattr(tuning, "candidates", lambda first, splits=(): asked.append(splits) or [first])
    explore(task(5, 30), data(5, 30))
    explore(task(5000, 30), data(5000, 30))
    assert asked == [(1, 4, 16, 64), ()]


# Predictions ----------------------------------------------------------------------------------------------------------


def test_nothing_is_predicted_for_c(measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "static")
    monkeypatch.setattr(tuning, "_seconds", lambda *args: pytest.fail("measured"))
    call()
    assert answers(measuring) == []


def compiled_task(where: str = "cuda:90", rows: int = 100_000) -> Task:
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("interpreted: nothing is compiled")
    program = Program("Exp(-SqDist(x,y))*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"], "Sum", 1, 0, None)
    return Task(program, Target(backend="triton"), Layout((), rows, 100_000), where)


def test_the_best_prediction_without_spills_is_chosen_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiled_task()
    few = {"registers": 32}, {"block_j": 8}, {"block_j": 32}
    tried = [asked.first, *(replace(asked.first, **changes) for changes in few)]
    monkeypatch.setattr(tuning, "candidates", lambda first, splits=(): tried)
    found, best = find(asked, None)
    assert [trial.schedule for trial in found] == tried and not any(trial.seconds for trial in found)
    assert found[1].prediction and found[1].prediction.usage.spilled and not found[1].prediction.fits
    rates = [trial.prediction.pairs_per_second for trial in found if trial.prediction and trial.prediction.fits]
    assert best.prediction and best.prediction.pairs_per_second == max(rates) > 0 and len(rates) == 3
    monkeypatch.setattr(tuning, "explore", lambda *args: pytest.fail("compiled again"))
    assert tuned(replace(asked, device=torch.device("cpu")), [], "static") == best.schedule
    assert compiled_task("cuda:80").answer(measured=False) is None


def test_predictions_need_a_known_device_and_a_loop_that_can_be_counted() -> None:
    assert tuning.has_model(compiled_task())
    assert not tuning.has_model(compiled_task("hip:gfx942"))
    lists = Program("SqDist(x,y)", ALIASES, "ArgKMin", 1, 5, None)
    assert not tuning.has_model(replace(compiled_task(), program=lists, target=Target(sum_scheme="", backend="triton")))
    assert len(explore(compiled_task("hip:gfx942"))) == 1


def test_the_best_predictions_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiled_task()

    class Fake:
        def __init__(self, n: int) -> None:
            self.fits, self.pairs_per_second = n != 5, float(n)

    given = [Trial(replace(asked.first, block_i=2**n), Fake(n)) for n in range(8)]  # type: ignore[arg-type]
    given.append(Trial(replace(asked.first, splits=4)))
    chosen = [given.index(trial) for trial in tuning._contenders(asked, given)]
    assert chosen == [0, 3, 4, 6, 7, 8]
    assert choose(given[:8]) is given[7]
    assert tuning._contenders(compiled_task("hip:gfx942"), given * 2) == (given * 2)[: tuning._NEAREST]
