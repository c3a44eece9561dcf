"""Which schedule a call runs on: the chooser's, or a better one of its neighbours, found once and remembered.

TRITONKEOPS_AUTOTUNE says how they are compared. `off`, the default: not at all. `static`: by predictions from machine
code, of which none is run; only for NVIDIA's GPUs, since there is no such model of C code. `measure`: by time, of the
best few predictions on a GPU and of all candidates on a CPU. Answers are kept in the cache directory, by all that they
depend on; `static` takes a measured one where there is one. Patterns are not tuned: their pairs vary from call to call.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import tritonkeops
from tritonkeops import cache
from tritonkeops.backends.c.build import compiler, identity
from tritonkeops.backends.kernel import Launch, Layout
from tritonkeops.compiler import Program, Target
from tritonkeops.formula.text import show
from tritonkeops.runtime.progress import Progress
from tritonkeops.tile.candidates import candidates
from tritonkeops.tile.schedule import Schedule

if TYPE_CHECKING:
    from tritonkeops.backends.triton.predict import Prediction

log = logging.getLogger("tritonkeops")
MODES = ("off", "static", "measure")
_GAIN = 0.97  # of the default's time: what is not clearly faster is not taken
_exploring = threading.Lock()  # measurements would disturb each other


def mode() -> str:
    """What TRITONKEOPS_AUTOTUNE asks for. Raises ValueError."""
    given = os.environ.get("TRITONKEOPS_AUTOTUNE") or "off"
    if given not in MODES:
        raise ValueError(f"TRITONKEOPS_AUTOTUNE={given!r}: expected one of {', '.join(MODES)}")
    return given


def launch(program: Program, target: Target, args: Sequence[Tensor], layout: Layout) -> Launch:
    """A launch for the arguments, tuned if that is asked for. Raises ValueError for an unknown mode."""
    wanted, schedule = mode(), None
    if wanted != "off" and not target.pattern:
        device = args[0].device
        with _on(device):
            if where := at_hand(target.backend):
                schedule = tuned(Task(program, target, layout, where, device), args, wanted)
    return program.kernel(target, schedule).prepare(args, layout)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one, which Triton asks for."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device.type).device(device)


def at_hand(backend: str) -> str:
    """The device that a back end runs on: "cpu", "cuda:90", "hip:gfx942"; "" where nothing can be tuned."""
    if backend == "c":
        return "cpu" if compiler() else ""
    if find_spec("triton") is None:
        return ""
    # These import Triton, which CPUs do not need.
    from triton.runtime import driver

    from tritonkeops.backends.triton.build import interpreted

    if interpreted():
        return ""
    found = driver.active.get_current_target()
    return f"{found.backend}:{found.arch}"


def tuned(task: Task, args: Sequence[Tensor], wanted: str) -> Schedule:
    """The schedule that is known, or is found now; the chooser's while a CUDA graph is captured."""
    with _exploring:
        known = task.answer(measured=True) or (task.answer(measured=False) if wanted == "static" else None)
        if known is not None or _capturing():
            return known or task.first
        return find(task, args if wanted == "measure" else None)[1].schedule


def find(task: Task, args: Sequence[Tensor] | None) -> tuple[list[Trial], Trial]:
    """All trials, the default first, and the one that is chosen; that is kept."""
    trials = explore(task, args)
    best = choose(trials)
    _report(task, trials, best)
    if len(trials) > 1:
        task.keep(best.schedule, measured=args is not None)
    return trials, best


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _report(task: Task, trials: Iterable[Trial], best: Trial) -> None:
    for trial in trials:
        took = f"{1e3 * trial.seconds:.3f} ms" if trial.seconds else ""
        rate = f"{trial.prediction.pairs_per_second / 1e9:.4g} G pairs/s predicted" if trial.prediction else ""
        said = ", ".join(filter(None, (took, rate, trial.failure))) or "not tried"
        log.info("%s: %s on schedule %s%s", task.program.reduction, said, trial.schedule, " *" * (trial is best))


# What is tuned, and what is kept of it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A program for a target and sizes of calls, on a device by name; `device` is where that is at hand."""

    program: Program
    target: Target
    layout: Layout
    where: str
    device: torch.device | None = None

    @functools.cached_property
    def first(self) -> Schedule:
        """The chooser's schedule."""
        return self.program.tile(self.target).schedule

    def answer(self, measured: bool) -> Schedule | None:
        """The schedule that is kept, if it is one that could be found today."""
        path = cache.find(self._key(measured))
        try:
            record = json.loads(path.read_text()) if path else None
        except (OSError, ValueError):
            return None
        return next((found for found in candidates(self.first, _SPLITS) if asdict(found) == record), None)

    def keep(self, found: Schedule, measured: bool) -> None:
        """Keep an answer; of several processes the last one's stays."""
        content = json.dumps(asdict(found)).encode()
        cache.keep(self._key(measured), content, ".txt", f"schedule of {self.program.reduction}")

    def _key(self, measured: bool) -> str:
        """Predictions are for all devices of a kind, times for one."""
        shape = (math.prod(self.layout.batch), self.layout.rows, self.layout.cols)
        sizes = [math.ceil(math.log2(max(1, n))) for n in shape]
        what = (show(self.program.reduction), repr(self.target), repr(self.first), repr(sizes))
        return cache.digest("schedule", *what, self.where, *_versions(), _identity(self.device) if measured else "")


def _identity(device: torch.device | None) -> str:
    if device is None or device.type == "cpu":
        return f"{identity()} {torch.get_num_threads()}"
    return str(torch.get_device_module(device.type).get_device_name(device))


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of all that takes part in compiling."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    return tritonkeops.__version__, torch.__version__, triton


# Comparing ------------------------------------------------------------------------------------------------------------

_BEST = 4  # predictions that are measured beside the default
_NEAREST = 9  # candidates that are measured where there is no model
_SPLITS = (1, 4, 16, 64)  # parts of j, tried where rows i are few


@dataclass(frozen=True)
class Trial:
    """A candidate, with what the model predicts, the seconds of a call, or why it is out, as far as that is known."""

    schedule: Schedule
    prediction: Prediction | None = None
    seconds: float | None = None
    failure: str = ""


def explore(task: Task, args: Sequence[Tensor] | None = None) -> list[Trial]:
    """The candidates, the default first: with predictions where there is a model, and times where there are `args`."""
    few = args is not None and task.layout.rows * math.prod(task.layout.batch) < _full_rows(task)
    trials = [Trial(schedule) for schedule in candidates(task.first, _SPLITS if few else ())]
    with Progress(f"tuning {task.program.reduction}") as progress:
        if has_model(task):
            trials = _predicted(task, trials, progress)
        if args is None:
            return trials if has_model(task) else trials[:1]
        return _measured(task, trials, args, progress)


def choose(trials: Sequence[Trial]) -> Trial:
    """The fastest, or where nothing was measured the best predicted; the default, unless that is clearly slower."""
    costs = {n: trial.seconds for n, trial in enumerate(trials) if trial.seconds is not None}
    if not costs:
        costs = {n: 1 / rate for n, trial in enumerate(trials) if (rate := _predicted_rate(trial))}
    best = min(costs, key=costs.__getitem__, default=0)
    return trials[best if costs and costs[best] < _GAIN * costs.get(0, math.inf) else 0]


def has_model(task: Task) -> bool:
    """Whether speed can be predicted. Insertions into sorted lists depend on the data: no count tells how many."""
    if task.target.backend == "c" or task.program.reduction.op.guard is not None:
        return False
    from tritonkeops.backends.triton.predict import DEVICES  # imports Triton

    return task.where in DEVICES


def _predicted_rate(trial: Trial) -> float:
    """0 for what spills or does not fit."""
    return trial.prediction.pairs_per_second if trial.prediction and trial.prediction.fits else 0.0


def _predicted(task: Task, trials: Sequence[Trial], progress: Progress) -> list[Trial]:
    """With what the model says of each; they are compiled side by side."""
    from tritonkeops.backends.triton.predict import predict  # imports Triton

    def work(trial: Trial) -> Trial:
        kernel = task.program.triton_kernel(task.target, trial.schedule)
        return replace(trial, prediction=predict(kernel, task.where, task.layout))

    progress.expect(len(trials))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return [_step(progress, done) for done in pool.map(functools.partial(_attempt, work), trials)]


def _attempt(work: Callable[[Trial], Trial], trial: Trial) -> Trial:
    """A trial after some work on it; one that cannot be compiled or run is out."""
    try:
        return work(trial)
    except Exception as error:  # each compiler has errors of its own
        return replace(trial, failure=f"{type(error).__name__}: {error}".partition("\n")[0])


def _step(progress: Progress, trial: Trial) -> Trial:
    progress.step()
    return trial


# Measuring ------------------------------------------------------------------------------------------------------------

_ROUNDS = {"c": 4, "triton": 1}  # in which all contenders take turns, so that drift hits all alike
_FINALISTS = 3  # beside the default, which go on for twice as many rounds,
_MOST_ROUNDS, _ENOUGH = 200, 1.0  # or more of them until so many seconds are over
_MOST_PAIRS = {"c": 1 << 26, "triton": 1 << 36}  # of a run: longer calls are measured on their first rows


def _measured(task: Task, trials: Sequence[Trial], args: Sequence[Tensor], progress: Progress) -> list[Trial]:
    """With the seconds of the contenders: the best of a few runs."""
    args, layout = _sample(task, args)
    outputs = _outputs(task, args, layout)
    race = _Race(task.target.backend, progress)

    def prepare(trial: Trial) -> Trial:
        launch = task.program.kernel(task.target, trial.schedule).prepare(args, layout)
        race.enter(trial.schedule, functools.partial(launch, args, outputs, torch.get_num_threads()))
        return trial

    contenders, rounds = _contenders(task, trials), _ROUNDS[task.target.backend]
    progress.expect(len(contenders) * (1 + rounds) + (1 + _FINALISTS) * 2 * rounds)
    attempts = {trial.schedule: _step(progress, _attempt(prepare, trial)) for trial in contenders}
    trials = [attempts.get(trial.schedule, trial) for trial in trials]
    race.run(list(race.seconds), rounds, rounds)
    ranked = sorted(race.seconds, key=race.seconds.__getitem__)
    finalists = [schedule for schedule in race.seconds if schedule in (task.first, *ranked[:_FINALISTS])]
    race.run(finalists, 2 * rounds, _MOST_ROUNDS)
    whole = task.layout.rows / max(1, layout.rows)
    times = {schedule: seconds * whole for schedule, seconds in race.seconds.items()}
    return [replace(trial, seconds=times.get(trial.schedule)) for trial in trials]


class _Race:
    """Schedules that take turns; `seconds` are those of the best run of each."""

    def __init__(self, backend: str, progress: Progress) -> None:
        self._backend, self._progress = backend, progress
        self._runs: dict[Schedule, Callable[[], None]] = {}
        self.seconds: dict[Schedule, float] = {}

    def enter(self, schedule: Schedule, run: Callable[[], None]) -> None:
        """Compiles and warms up. Raises what that raises."""
        run()
        self._runs[schedule], self.seconds[schedule] = run, math.inf

    def run(self, schedules: Sequence[Schedule], rounds: int, most: int) -> None:
        """So many rounds, and more until they took long enough to tell."""
        start = time.perf_counter()
        for n in range(most):
            if n >= rounds and time.perf_counter() - start > _ENOUGH:
                break
            for schedule in schedules:
                self.seconds[schedule] = min(self.seconds[schedule], _seconds(self._runs[schedule], self._backend))
                if n < rounds:
                    self._progress.step()


def _seconds(run: Callable[[], None], backend: str) -> float:
    """Of one run on a CPU; the median of many on a GPU."""
    if backend == "triton":
        from triton.testing import do_bench  # CPUs do not need Triton

        return float(do_bench(run, return_mode="median")) / 1e3
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _contenders(task: Task, trials: Sequence[Trial]) -> list[Trial]:
    """Which are worth measuring: the default, the best predictions, and other numbers of parts of j."""
    if task.target.backend == "c":
        return list(trials)
    if not has_model(task):
        return list(trials[:_NEAREST])
    ranked = sorted((trial for trial in trials if _predicted_rate(trial)), key=_predicted_rate, reverse=True)
    best = {trial.schedule for trial in (trials[0], *ranked[:_BEST])}
    return [trial for trial in trials if trial.schedule in best or trial.schedule.splits != trials[0].schedule.splits]


def _sample(task: Task, args: Sequence[Tensor]) -> tuple[list[Tensor], Layout]:
    """The first rows i of the arguments, if all of them would take long; as many as occupy the device."""
    layout = task.layout
    pairs_of_a_row = max(1, layout.cols * math.prod(layout.batch))
    rows = min(layout.rows, max(_MOST_PAIRS[task.target.backend] // pairs_of_a_row, _full_rows(task)))
    letter = "i" if task.program.reduction.axis == 1 else "j"
    read = zip(task.program.variables, args, strict=True)
    return [x.narrow(-2, 0, rows) if letter in var.axes else x for var, x in read], replace(layout, rows=rows)


def _full_rows(task: Task) -> int:
    """Rows i that occupy the whole device, whatever the schedule."""
    return 256 * torch.get_num_threads() if task.target.backend == "c" else 1 << 16


def _outputs(task: Task, args: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    node, device = task.program.reduction, args[0].device
    dtypes = [torch.int64 if kind == "index" else args[0].dtype for kind in node.op.outputs]
    return [torch.empty((*layout.batch, layout.rows, node.dim), dtype=dtype, device=device) for dtype in dtypes]
