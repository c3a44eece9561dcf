"""Tuning on a GPU: the same results, answers that are kept, and nothing clearly slower than the default."""

from dataclasses import replace

import pytest
import torch

from tritonkeops.__main__ import main
from tritonkeops.backends.kernel import Layout
from tritonkeops.runtime import ahead, tuning
from tritonkeops.torch import Genred

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

GAUSSIAN = ("Exp(-SqDist(x,y))*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"])
LISTS = ("SqDist(x,y)*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"], "KMin", 1, None, 5)
ROWS = 20_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def args():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(ROWS, dim, generator=generator).cuda() for dim in (3, 3, 1)]


def kernel_of(formula, aliases, op="Sum", axis=1, dtype=None, k=None):
    return Genred(formula, aliases, op, axis, opt_arg=k)


@pytest.mark.parametrize("mode", ["static", "measure"])
@pytest.mark.parametrize("given", [GAUSSIAN, LISTS])
def test_the_result_is_the_same_and_the_answer_is_kept(given, mode, args, monkeypatch):
    expected = kernel_of(*given)(*args)
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", mode)
    torch.testing.assert_close(kernel_of(*given)(*args), expected)
    predicted = mode == "static" and given is LISTS  # nothing is: insertions cannot be counted
    if not predicted:
        monkeypatch.setattr(tuning, "explore", lambda *args: pytest.fail("tuned again"))
    torch.testing.assert_close(kernel_of(*given)(*args), expected)


def test_the_choice_is_not_slower_than_the_default():
    caller, there = kernel_of(*GAUSSIAN)._call, ahead.place()
    found = ahead.tune(caller, "float32", ROWS, ROWS, there, "measure")
    args = ahead._arguments(caller.program, ROWS, ROWS, "float32", there.device)
    again = replace(found.task, layout=Layout((), ROWS, ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "candidates", lambda *_: [found.trials[0].schedule, found.chosen.schedule])
        patch.setattr(tuning, "has_model", lambda task: False)
        default, chosen = tuning.explore(again, args)
    assert chosen.seconds <= 1.05 * default.seconds


def test_what_is_found_for_a_model_of_devices_is_found_by_calls_there(args, monkeypatch, capsys):
    major, minor = torch.cuda.get_device_capability()
    formula, aliases = GAUSSIAN
    target = ["--target", f"cuda:{major}{minor}", "--mode", "static", "--sizes", f"{ROWS}x{ROWS}"]
    assert main(["tune", formula, *aliases, "--axis", "1", *target]) == 0
    assert "predicted" in capsys.readouterr().out
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "static")
    monkeypatch.setattr(tuning, "explore", lambda *args: pytest.fail("compiled again"))
    kernel_of(*GAUSSIAN)(*args)


def test_tuned_calls_can_be_captured(args, monkeypatch):
    monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", "measure")
    kernel = kernel_of(*GAUSSIAN)
    expected = kernel(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kernel(*args)
    graph.replay()
    torch.testing.assert_close(result, expected)
