"""Schedules that are tried beside the chooser's give the same results, and the interpreter is never tuned for."""

from dataclasses import fields, replace

import pytest
import torch

from tritonkeops.compiler import Target
from tritonkeops.runtime import tuning
from tritonkeops.tile.candidates import gpu_candidates
from tritonkeops.tile.schedule import GpuSchedule

FORMULAS = {
    "simt": ("Exp(-SqDist(x,y))*b", 3, "Sum", 0),
    "looped": ("Exp(-SqDist(x,y))*b", 20, "LogSumExp", 0),
    "dot": ("Exp(-SqDist(x,y))*b", 20, "Sum", 0),
    "guarded": ("SqDist(x,y)+b", 3, "KMin_ArgKMin", 3),
}
SMALL = {
    "simt": {"block_i": 64, "block_j": 16, "num_warps": 2},
    "looped": {"block_i": 64, "block_j": 16, "num_warps": 2},
    "dot": {"block_i": 64, "block_j": 64, "num_warps": 4},
    "guarded": {"block_i": 32, "block_j": 16, "num_warps": 1},
}


@pytest.mark.parametrize("form", FORMULAS)
def test_results_on_candidates_are_the_same(form, program, run):
    formula, dim, op, k = FORMULAS[form]
    made = program(formula, [f"x=Vi({dim})", f"y=Vj({dim})", "b=Vj(1)"], op, k=k)
    generator = torch.Generator().manual_seed(0)
    args = [torch.rand(n, d, generator=generator) for n, d in ((70, dim), (90, dim), (90, 1))]
    precision = "highest" if form == "dot" else "direct"
    first = made.tile(Target(backend="triton", precision=precision)).schedule
    assert first.form == form
    first = replace(first, **SMALL[form], block_sum=64 if first.block_sum else 0)
    expected = run(made, args, "torch")
    found = gpu_candidates(first, [3, 50])
    for schedule in [s for n, s in enumerate(found) if n % 3 == 0 or s.splits]:  # a few: they take a second each
        changes = {f.name: getattr(schedule, f.name) for f in fields(schedule)}
        for a, b in zip(run(made, args, **changes), expected, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, s=schedule: f"{s}: {text}")


@pytest.mark.parametrize("mode", ["static", "measure"])
def test_the_interpreter_is_not_tuned_for(mode, genred, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", mode)
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "explore", lambda *args: pytest.fail("tuned"))
    x, y = torch.rand(5, 2), torch.rand(4, 2)
    result = genred("SqDist(x,y)", ["x=Vi(2)", "y=Vj(2)"], axis=1)(x, y)
    torch.testing.assert_close(result, ((x[:, None] - y[None]) ** 2).sum((1, 2))[:, None])


def test_schedules_are_measured_on_the_arguments(genred, monkeypatch, tmp_path):
    """As on a device that has no model: the fastest of the nearest candidates runs, and the result is the same."""
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "measure")
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "at_hand", lambda backend: "hip:gfx942")
    first = GpuSchedule(form="simt", block_i=32, block_j=16, num_warps=1)
    tried = [first, replace(first, block_j=32), replace(first, splits=2)]
    monkeypatch.setattr(tuning, "candidates", lambda first, splits=(): tried)
    monkeypatch.setattr("tritonkeops.compiler.choose_gpu", lambda *args, **options: first)
    measured = []

    def seconds(run, backend):
        run()
        measured.append(backend)
        return 1 / len(measured) if len(measured) <= 3 else 1.0

    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch.setattr(tuning, "_MOST_ROUNDS", 2)
    x, y = torch.rand(40, 2), torch.rand(50, 2)
    kernel = genred("SqDist(x,y)", ["x=Vi(2)", "y=Vj(2)"], axis=1)
    torch.testing.assert_close(kernel(x, y), ((x[:, None] - y[None]) ** 2).sum((1, 2))[:, None])
    assert set(measured) == {"triton"}
    (plan,) = kernel._call._plans.values()
    assert plan.launch.splits == 2 and plan.launch._kernel.schedule == tried[2]
