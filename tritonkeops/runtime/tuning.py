"""Which schedule a call runs on: the chooser's, or the fastest of a few measured once and remembered.

`TRITONKEOPS_AUTOTUNE=measure` times candidates at the first call of a (formula, dtype, CPU, size class) and keeps the
answer in the cache directory; otherwise the chooser decides.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from tritonkeops import cache
from tritonkeops.backends.c.build import compiler, identity
from tritonkeops.backends.kernel import Launch, Layout
from tritonkeops.compiler import Program, Target
from tritonkeops.formula.text import show
from tritonkeops.tile.schedule import CpuSchedule, candidates

log = logging.getLogger("tritonkeops")
_ROUNDS = 3


def launch(program: Program, target: Target, args: Sequence[Tensor], layout: Layout) -> Launch:
    """A launch for the arguments, tuned if that is asked for; not for patterns, whose pairs vary from call to call."""
    schedule = None
    measure = os.environ.get("TRITONKEOPS_AUTOTUNE", "off") == "measure" and not target.pattern
    if measure and compiler() is not None:
        schedule = _tuned(program, target, args, layout)
    return program.kernel(target, schedule).prepare(args, layout)


def _tuned(program: Program, target: Target, args: Sequence[Tensor], layout: Layout) -> CpuSchedule:
    sizes = [math.ceil(math.log2(max(1, n))) for n in (math.prod(layout.batch), layout.rows, layout.cols)]
    key = cache.digest(
        "schedule", show(program.reduction), repr(target), identity(), repr((sizes, torch.get_num_threads()))
    )
    known = _known(key)
    if known is not None:
        return known
    first = program.tile(target).schedule
    assert isinstance(first, CpuSchedule)
    times = {schedule: _time(program, target, schedule, args, layout) for schedule in candidates(first)}
    best = min(times, key=times.__getitem__)
    for schedule, seconds in times.items():
        log.info(
            "%s: %.3f ms on schedule %s%s", program.reduction, 1e3 * seconds, schedule, " *" if schedule is best else ""
        )
    cache.keep(key, json.dumps(asdict(best)).encode(), ".txt", f"schedule of {program.reduction}")
    return best


def _known(key: str) -> CpuSchedule | None:
    """The answer kept, unless another version of this package wrote it."""
    path = cache.find(key)
    try:
        return CpuSchedule(**json.loads(path.read_text())) if path else None
    except (OSError, TypeError, ValueError):
        return None


def _time(program: Program, target: Target, schedule: CpuSchedule, args: Sequence[Tensor], layout: Layout) -> float:
    """Seconds of one run, the minimum of a few."""
    run = program.kernel(target, schedule).prepare(args, layout)
    node = program.reduction
    dtypes = [torch.int64 if kind == "index" else args[0].dtype for kind in node.op.outputs]
    outputs = [torch.empty((*layout.batch, layout.rows, node.dim), dtype=dtype) for dtype in dtypes]
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run(args, outputs, torch.get_num_threads())
        seconds.append(time.perf_counter() - start)
    return min(seconds)
