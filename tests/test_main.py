"""The command line: every stage, errors as text on standard error, the machine, and the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tritonkeops
from tritonkeops import cache
from tritonkeops.__main__ import main
from tritonkeops.formula.ir import Operator, words
from tritonkeops.torch import Genred

GAUSSIAN = ["Exp(-SqDist(x,y))*b", "x=Vi(3)", "y=Vj(3)", "b=Vj(1)"]
SUM = ["--reduction", "Sum", "--axis", "1"]


@pytest.fixture
def shell(capsys):
    """shell(*arguments): exit status, standard output, standard error."""

    def call(*arguments):
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


def python(*arguments):
    """Python in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(tritonkeops.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def run(*arguments):
    """The command line in a process of its own."""
    return python("-m", "tritonkeops", *arguments)


# ---- explain ----


@pytest.mark.parametrize("stage", ["ast", "formula", "simplified", "tile", "c"])
def test_emit_prints_what_explain_returns(shell, stage):
    expected = Genred(GAUSSIAN[0], GAUSSIAN[1:], reduction_op="Sum", axis=1).explain(stage)
    assert shell(*GAUSSIAN, *SUM, "--emit", stage) == (0, expected, "")


def test_the_process_prints_the_same(shell):
    arguments = (*GAUSSIAN, *SUM, "--emit", "tile")
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == shell(*arguments)


def test_c_is_the_default_stage_and_zero_the_default_axis(shell):
    status, text, _ = shell(*GAUSSIAN)
    assert status == 0
    assert text.startswith("/* Sum_Reduction(") and "static void fold(" in text
    assert "over i" in shell(*GAUSSIAN, "--emit", "formula")[1]


def test_options_may_stand_before_the_formula(shell):
    assert shell("--emit", "tile", *SUM, *GAUSSIAN) == shell(*GAUSSIAN, *SUM, "--emit", "tile")


def test_dtype_and_sum_scheme(shell):
    assert "typedef double real;" in shell(*GAUSSIAN, *SUM, "--dtype", "float64")[1]
    kahan = shell(*GAUSSIAN, *SUM, "--sum-scheme", "kahan_scheme", "--emit", "tile")[1]
    assert kahan.count("  accumulator ") == 2, "the sum, and what its last addition lost"


def test_k_and_weight(shell):
    clouds = ("x=Vi(3)", "y=Vj(3)")
    neighbours = shell("SqDist(x,y)", *clouds, "--reduction", "ArgKMin", "--opt-arg", "5", "--emit", "formula")
    assert "reduce ArgKMin(%2) over i k=5" in neighbours[1]
    softmax = shell("-SqDist(x,y)", *clouds, "--reduction", "SoftMax", "--formula2", "-y", "--emit", "formula")
    assert "reduce SoftMax(%3, %4) over i" in softmax[1]


def test_a_formula_may_start_with_a_minus_and_hold_its_reduction(shell):
    status, text, _ = shell("-Sum_Reduction(x, 1)", "x=Vi(3)")
    assert (status, text) == (1, "")
    status, text, _ = shell("Sum_Reduction(-Vi(0,3), 0)", "--emit", "formula")
    assert status == 0 and text.splitlines()[-1].startswith("%2 = reduce Sum(%1) over i")


def test_a_formula_that_is_also_a_command(shell):
    assert shell("explain", "info", "info=Vi(3)", "--emit", "ast") == (0, "name info  // 1:1\n", "")


# ---- errors ----

FAULTS = """\
formula, line 1, column 2: unknown operator 'SqDst'
  | -SqDst(x,z)
  |  ^~~~~
  = did you mean 'SqDist'?
formula, line 1, column 10: unknown variable 'z'
  | -SqDst(x,z)
  |          ^
  = known: x, y
"""


def test_formula_errors_are_text_on_standard_error(shell):
    arguments = ("-SqDst(x,z)", "x=Vi(3)", "y=Vj(3)")
    assert shell(*arguments) == (1, "", FAULTS)
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", FAULTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("SqDist(x,y)", "x=Vi(3)", "y=Vj(4)"), "x has dim 3"),
        (("x*y", "x=Vi(3)", "y=Vk(3)"), "alias 2"),
        (("x", "x=Vi(3)", "--axis", "2"), "Axis should be 0 or 1"),
        (("x", "x=Vi(3)", "--reduction", "Summ"), "did you mean 'Sum'?"),
        (("x", "x=Vi(3)", "--reduction", "KMin"), "opt_arg=K"),
        (("x", "x=Vi(3)", "--reduction", "Min", "--sum-scheme", "block_sum"), "does not sum floats"),
    ],
)
def test_faults_end_with_status_1(shell, arguments, message):
    status, out, err = shell(*arguments)
    assert (status, out) == (1, "")
    assert message in err and "Traceback" not in err


def test_a_wrong_option_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*GAUSSIAN, "--emit", "assembly"])
    assert stop.value.code == 2
    assert "invalid choice: 'assembly'" in capsys.readouterr().err


def test_no_arguments_print_the_help(shell):
    status, out, _ = shell()
    assert status == 0
    assert "python -m tritonkeops FORMULA [ALIAS ...]" in out


# ---- info, cache, tables ----


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty cache directory of this test's own."""
    folder = tmp_path / "kernels"
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(folder))
    return folder


def test_info(shell, kept):
    cache.keep(cache.digest("a"), b"0" * 1500, ".so", "a kernel")
    status, out, _ = shell("info")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0
    assert rows["tritonkeops"] == tritonkeops.__version__
    assert {"python", "torch", "numpy", "lark", "triton", "CPU", "threads", "devices"} <= rows.keys()
    assert rows["cache"] == f"{kept}, 1 entry, 1.5 kB"
    assert rows["TRITONKEOPS_CACHE_DIR"] == str(kept)


def test_info_names_the_compiler(shell, monkeypatch, kept):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no C compiler found: $CC is 'no-such-compiler'" in shell("info")[1]


def test_cache_list_and_clear(shell, kept):
    assert shell("cache", "list")[1].strip() == ""
    cache.keep(cache.digest("a"), b"0" * 10, ".so", "Sum_Reduction(x, 1)")
    cache.keep(cache.digest("b"), b"1" * 20, ".txt", "schedule of Sum_Reduction(x, 1)")
    lines = shell("cache", "list")[1].splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["Sum_Reduction(x, 1)", "schedule of Sum_Reduction(x, 1)"]
    assert " 10 B " in lines[0]
    assert shell("cache", "clear")[1] == f"4 files removed from {kept}\n"
    assert list(kept.iterdir()) == []


def test_tables_list_every_word_once(shell):
    lines = shell("tables")[1].splitlines()
    for name, word in words.items():
        cell = f"| `{name}(" if isinstance(word, Operator) else f"| `{word.name}` |"
        assert sum(line.startswith(cell) for line in lines) == 1, name


def test_neither_torch_nor_the_parser_loads_for_the_cache_and_the_tables():
    code = "import sys, tritonkeops.__main__ as m; m.main(['tables']); print({'torch', 'lark'} & set(sys.modules))"
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
