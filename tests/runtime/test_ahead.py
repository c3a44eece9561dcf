"""`python -m tritonkeops tune`: answers found ahead of time, in a table and a picture, and found by calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tritonkeops.__main__ import main
from tritonkeops.backends.c.build import compiler
from tritonkeops.backends.kernel import Layout
from tritonkeops.compiler import Program, Target
from tritonkeops.runtime import ahead, report, tuning
from tritonkeops.runtime.report import Report, picture, table
from tritonkeops.runtime.tuning import Task, Trial
from tritonkeops.tile.candidates import candidates
from tritonkeops.tile.schedule import CpuSchedule, GpuSchedule
from tritonkeops.torch import Genred

SQUARES = ["SqDist(x,y)", "x=Vi(2)", "y=Vj(2)"]
CPU = ["--target", "cpu", "--sizes", "300x200"]
COMPILES = os.environ.get("TRITON_INTERPRET") != "1"
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "candidates", lambda first, splits=(): candidates(first, splits)[:3])
    monkeypatch.setattr(tuning, "_ENOUGH", 0.0)
    return tmp_path


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(["tune", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


Shell = Callable[..., tuple[int, str, str]]

# The command ----------------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_later_call_finds_the_answer(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    status, text, _ = shell(*SQUARES, "--axis", "1", *CPU)
    assert status == 0 and text.count("chosen") == 1
    monkeypatch.setattr(tuning, "explore", lambda *args: pytest.fail("measured again"))
    for mode in ("static", "measure"):
        monkeypatch.setenv("TRITONKEOPS_AUTOTUNE", mode)
        Genred(*[SQUARES[0], SQUARES[1:]], axis=1)(torch.rand(300, 2), torch.rand(200, 2))


@needs_compiler
def test_sizes_are_rows_i_and_rows_j_whichever_is_reduced(shell: Shell) -> None:
    sizes = ["--target", "cpu", "--sizes", "300x200, 30x20"]
    assert "float32, 200 x 300, cpu\n" in shell(*SQUARES, "--axis", "0", *sizes)[1]
    text = shell(*SQUARES, "--axis", "1", *sizes)[1]
    assert "float32, 300 x 200, cpu\n" in text and "float32, 30 x 20, cpu\n" in text


@needs_compiler
def test_options_of_the_formula(shell: Shell) -> None:
    options = ["--reduction", "ArgKMin", "--opt-arg", "3", "--axis", "1", "--dtype", "float64"]
    assert "ArgKMin" in (text := shell(*SQUARES, *options, *CPU)[1]) and "float64" in text
    weights = ["--reduction", "SumSoftMaxWeight", "--formula2", "y"]
    assert "SumSoftMaxWeight" in shell("-SqDist(x,y)", *SQUARES[1:], *weights, *CPU)[1]


@needs_compiler
def test_report_and_picture(shell: Shell, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ["--report", str(tmp_path / "r.md"), "--picture", str(tmp_path / "p.png")]
    _, text, _ = shell(*SQUARES, "--axis", "1", *CPU, *files)
    assert (tmp_path / "r.md").read_text() == text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "p.png").stat().st_size > 5000


def test_a_picture_without_matplotlib(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes first, not after minutes of measuring."""
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    monkeypatch.setattr(ahead, "find", lambda *args: pytest.fail("measured"))
    assert shell(*SQUARES, *CPU, "--picture", "p.png") == (1, "", "pictures need matplotlib: pip install matplotlib\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "cpu", "--mode", "static"], "nothing predicts the speed of C code"),
        (["--target", "cuda:90", "--mode", "measure"], "cuda:90 is not here"),
        (["--target", "hip:gfx942"], "nothing predicts the speed of hip:gfx942: "),
        (["--target", "abacus"], "nothing predicts the speed of abacus: "),
        (["--target", "cpu", "--dtype", "float16"], "expected float32 or float64 on the CPU, got float16"),
    ],
)
def test_what_cannot_be(options: list[str], said: str, shell: Shell) -> None:
    if "cuda" in options[1] or "hip" in options[1] or "abacus" in options[1]:
        pytest.importorskip("triton")
    status, text, error = shell(*SQUARES, *options)
    assert (status, text) == (1, "") and said in error


def test_no_compiler_at_all(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert "no C compiler found" in shell(*SQUARES, "--target", "cpu")[2]


def test_sizes_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", *SQUARES, "--sizes", "300"])
    assert "expected sizes such as 10000x10000, got '300'" in capsys.readouterr().err


@pytest.mark.skipif(not COMPILES, reason="interpreted: nothing is compiled")
def test_a_device_that_is_not_here(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found for "cuda:90" is what calls there look for."""
    pytest.importorskip("triton")
    gaussian = ["Exp(-SqDist(x,y))*b", "x=Vi(3)", "y=Vj(3)", "b=Vj(1)"]
    status, text, _ = shell(*gaussian, "--axis", "1", "--target", "cuda:90", "--sizes", "100000x100000")
    assert status == 0 and text.count("chosen") == 1
    head = next(line for line in text.splitlines() if line.startswith("| schedule"))
    assert "registers" in head and "predicted G pairs/s" in head and " ms " not in head
    caller = Genred(gaussian[0], gaussian[1:], axis=1)._call
    target = caller.how.target("float32", Layout((), 100_000, 100_000), "triton", 1)
    task = Task(caller.program, target, Layout((), 99_000, 99_000), "cuda:90", torch.device("cpu"))
    assert task.answer(measured=False) in candidates(task.first)


# Places ---------------------------------------------------------------------------------------------------------------


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "at_hand", lambda backend: {"c": "cpu", "triton": "cuda:90"}[backend])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ahead.place() == ahead.Place("cpu", torch.device("cpu")) and ahead.place().backend == "c"
    assert ahead.place("cuda:90") == ahead.Place("cuda:90", None) and ahead.place("cuda:90").backend == "triton"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ahead.place() == ahead.place("cuda:90") == ahead.Place("cuda:90", torch.device("cuda", 0))
    assert ahead.place("cuda:80").device is None and ahead.place("cpu").where == "cpu"


# The table and the picture --------------------------------------------------------------------------------------------


def reported(*trials: Trial, chosen: int = 0) -> Report:
    program = Program(SQUARES[0], SQUARES[1:], "Sum", 1, 0, None)
    return Report(Task(program, Target(), Layout((2,), 1000, 500), "here"), trials, trials[chosen])


FIRST = CpuSchedule(form="simt", lanes=16, width=16, unroll=4)


def test_the_table_of_times() -> None:
    given = reported(
        Trial(FIRST, seconds=0.002),
        Trial(replace(FIRST, lanes=32, width=32), seconds=0.001),
        Trial(replace(FIRST, unroll=8), failure="BuildError: no"),
        chosen=1,
    )
    title, default, _, *lines = table(given).splitlines()
    assert title.endswith("float32, 2 x 1000 x 500, here") and default == f"default: {FIRST}"
    assert [line.split("|")[1:-1] for line in lines] == [
        [" schedule           ", " ms ", " G pairs/s ", "                "],
        [" ------------------ ", " -: ", " --------: ", " -------------: "],
        [" default            ", "  2 ", "       0.5 ", "                "],
        [" lanes=32, width=32 ", "  1 ", "         1 ", "         chosen "],
        [" unroll=8           ", "    ", "           ", " BuildError: no "],
    ]


def test_the_table_of_predictions() -> None:
    pytest.importorskip("triton")
    from tritonkeops.backends.triton.predict import Prediction
    from tritonkeops.backends.triton.sass import PerPair, Usage

    first = GpuSchedule(form="simt", block_i=512, block_j=16, num_warps=4, block_sum=1024)
    good = Prediction(PerPair({}, {"issue": 8.41}, 0), Usage(128, 0, 0), 4, 0.25, 3.7e12, "issue")
    spilled = replace(good, usage=Usage(255, 16, 0), pairs_per_second=4e12)
    crowded = replace(good, resident=0, pairs_per_second=0.0)
    given = reported(
        Trial(first, good),
        Trial(replace(first, block_j=32, block_sum=2048), spilled),
        Trial(replace(first, num_stages=3), crowded),
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(given).splitlines()[3:]]
    assert lines[0] == [
        *("schedule", "instructions per pair", "registers", "spilled", "occupancy", "bound by"),
        *("predicted G pairs/s", ""),
    ]
    assert lines[2:] == [
        ["default", "8.41", "128", "", "25%", "issue", "3700", "chosen"],
        ["block_j=32", "8.41", "255", "16", "25%", "issue", "4000", "spills"],
        ["num_stages=3", "8.41", "128", "", "25%", "issue", "", "does not fit"],
    ]


def test_the_picture_shows_all_and_marks_two(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    original = Figure.savefig

    def save(figure: Figure, path: Path) -> None:
        drawn.append(figure)
        original(figure, path)

    times = Trial(FIRST, seconds=0.002), Trial(replace(FIRST, unroll=8), seconds=0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        picture([reported(*times, chosen=1), reported(*times)], tmp_path / "p.svg")
    first, second = drawn[0].axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["default", "unroll=8"]
    assert [text.get_color() for text in first.get_yticklabels()] == ["black", "tab:red"]
    assert [text.get_fontweight() for text in first.get_yticklabels()] == ["bold", "normal"]
    assert [bar.get_width() for bar in first.patches] == [0.5, 1.0]
    assert [text.get_color() for text in second.get_yticklabels()] == ["tab:red", "black"]
    assert (tmp_path / "p.svg").read_text().count("measured") >= 1
