"""Tuning ahead of time: for sizes of calls and a device that need not be there, answers that calls will find."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritonkeops.backends.c.build import no_compiler
from tritonkeops.backends.kernel import Layout
from tritonkeops.compiler import Program
from tritonkeops.runtime.call import GPUS, HALVES, Caller, shared_memory
from tritonkeops.runtime.report import Report
from tritonkeops.runtime.tuning import Task, at_hand, find


@dataclass(frozen=True)
class Place:
    """Where calls will run: the name of a device, and the device itself if it is at hand."""

    where: str
    device: torch.device | None

    @property
    def backend(self) -> str:
        return "c" if self.where == "cpu" else "triton"


def place(name: str | None = None) -> Place:
    """The place of a name such as "cpu" or "cuda:90"; without one the GPU at hand, else the CPU. Raises ValueError."""
    gpu = next((torch.device(kind, 0) for kind in GPUS if getattr(torch, kind).is_available()), None)
    here = at_hand("triton") if gpu else ""
    if name in (None, here) and here:
        return Place(here, gpu)
    if name not in (None, "cpu"):
        return Place(str(name), None)
    if not at_hand("c"):
        raise ValueError(no_compiler())
    return Place("cpu", torch.device("cpu"))


def tune(caller: Caller, dtype: str, M: int, N: int, there: Place, mode: str) -> Report:
    """Compare schedules for M rows i and N rows j, and keep the answer. Raises ValueError for what cannot be."""
    program, backend = caller.program, there.backend
    rows, cols = (M, N) if program.reduction.axis == 1 else (N, M)
    layout = Layout((), rows, cols)
    target = caller.how.target(dtype, layout, backend, program.reduction.dim if backend == "triton" else 1)
    _check(there, mode, dtype)
    if backend == "triton":
        target = replace(target, shared=_shared_memory(there))
    task = Task(program, target, layout, there.where, there.device)
    args = None if mode == "static" or there.device is None else _arguments(program, M, N, dtype, there.device)
    trials, chosen = find(task, args)
    return Report(task, trials, chosen)


def _shared_memory(there: Place) -> int:
    """Bytes of it that a block may have."""
    if there.device is not None:
        return shared_memory(there.device)
    from tritonkeops.backends.triton.predict import DEVICES  # imports Triton, which CPUs do not need

    return DEVICES[there.where].block_shared


def _check(there: Place, mode: str, dtype: str) -> None:
    if mode == "measure" and there.device is None:
        raise ValueError(f"{there.where} is not here: it can be tuned for by mode static alone")
    if mode == "static" and there.where == "cpu":
        raise ValueError("nothing predicts the speed of C code: a CPU can be tuned for by mode measure alone")
    if there.where == "cpu" and getattr(torch, dtype) in HALVES:
        raise ValueError(f"expected float32 or float64 on the CPU, got {dtype}")
    if mode == "static":
        from tritonkeops.backends.triton.build import interpreted  # these import Triton, which CPUs do not need
        from tritonkeops.backends.triton.predict import DEVICES

        if there.where not in DEVICES or interpreted():
            why = "TRITON_INTERPRET=1 is set" if interpreted() else f"expected one of {', '.join(DEVICES)}"
            raise ValueError(f"nothing predicts the speed of {there.where}: {why}")


def _arguments(program: Program, M: int, N: int, dtype: str, device: torch.device) -> list[Tensor]:
    """Numbers from 0 to 1, where most formulas are defined."""
    lengths = {"i": (M,), "j": (N,)}
    shapes = [(*sum((lengths[letter] for letter in var.axes), ()), var.dim) for var in program.variables]
    generator = torch.Generator(device).manual_seed(0)
    return [torch.rand(s, generator=generator, device=device).to(getattr(torch, dtype)) for s in shapes]
