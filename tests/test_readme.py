"""README and CONTRIBUTING: their code runs, their commands print what they show, their generated parts are up to date.

    TRITONKEOPS_REGENERATE=1 python -m pytest tests/test_readme.py

writes the generated parts anew: what stands between `<!-- name -->` and `<!-- /name -->`, and the output of commands.

Fences: ```python blocks run in order in one namespace per page (as a doctest where they have a prompt); ```console
blocks hold commands of `python -m tritonkeops` and what they print; a fence that names a file, as in
```python tritonkeops/formula/text.py, quotes that file word for word.
"""

import doctest
import io
import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest

from bench import report
from bench.cases import CASES, TABLE
from bench.compare import Comparison
from tests.formulas import REGENERATE
from tritonkeops.__main__ import main, operator_table, reduction_table
from tritonkeops.compiler import Program, Target, explain
from tritonkeops.formula.ir import infix, words

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md")
COMMAND = "$ python -m tritonkeops "

every_page = pytest.mark.parametrize("page", PAGES)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, the file it quotes if any, text, and the line of the page on which that starts."""

    language: str
    quotes: str
    text: str
    line: int


def blocks(page, *languages):
    text = (ROOT / page).read_text()
    found = re.finditer(r"^```(\w+) ?(\S*)\n(.*?)^```$", text, re.M | re.S)
    listed = [Block(m[1], m[2], m[3], text.count("\n", 0, m.start(3)) + 1) for m in found]
    return [block for block in listed if block.language in languages]


# ---- code ----


@pytest.fixture
def registry():
    """The registry of words as it was: what a page declares does not outlive the test."""
    before = dict(words), dict(infix)
    yield
    for table, entries in zip((words, infix), before, strict=True):
        table.clear()
        table.update(entries)


@every_page
def test_python_blocks_run(page, registry):
    namespace = {"__name__": page}
    runnable = [block for block in blocks(page, "python") if not block.quotes]
    assert runnable
    for block in runnable:
        if ">>> " in block.text:
            run_doctest(block, page, namespace)
        else:
            exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec"), namespace)


def run_doctest(block, page, namespace):
    """Run a block that has prompts; the namespace goes in and comes out."""
    test = doctest.DocTestParser().get_doctest(block.text, namespace, page, page, block.line - 1)
    said = io.StringIO()
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.write, clear_globs=False)
    namespace.update(test.globs)
    assert not results.failed, said.getvalue()


@every_page
def test_quoted_code_is_in_the_file_it_names(page):
    for block in blocks(page, "python", "c"):
        if block.quotes:
            assert block.text.rstrip() in (ROOT / block.quotes).read_text(), f"{page}, line {block.line}"


# ---- commands ----


def sessions(text):
    """The commands of a console block, each with its output."""
    parts = re.split(rf"^({re.escape(COMMAND)}.*\n(?:> .*\n)*)", text, flags=re.M)
    assert not parts[0].strip(), f"text before the first command: {parts[0]!r}"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def output(command):
    """What a command prints, both streams, run here."""
    arguments = shlex.split(command.replace("\\\n> ", "").removeprefix(COMMAND))
    stream = io.StringIO()
    with redirect_stdout(stream), redirect_stderr(stream):
        main(arguments)
    return stream.getvalue()


def agree(expected, found):
    return doctest.OutputChecker().check_output(expected, found, doctest.ELLIPSIS)


@every_page
def test_console_blocks_print_what_they_show(page):
    for block in blocks(page, "console"):
        for command, expected in sessions(block.text):
            found = output(command)
            if REGENERATE and not agree(expected, found):
                path = ROOT / page
                path.write_text(path.read_text().replace(command + expected, command + found))
            else:
                assert agree(expected, found), f"{page}, line {block.line}: {command}{found}"


def test_readme_shows_commands():
    assert len(blocks("README.md", "console")) >= 2


# ---- generated parts ----

GAUSSIAN = Program("Exp(-SqDist(x,y))*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"], "Sum", axis=1, k=0, formula2=None)


def stage(name):
    """A stage of the Gaussian, for a CPU with vectors of 512 bits whatever CPU this is."""
    with patch("tritonkeops.tile.schedule.vector_bytes", lambda: 64):
        return f"```text\n{explain(GAUSSIAN, name, Target())}```"


def c_loop():
    """The loop over j of the C kernel, with one j at a time."""
    with patch("tritonkeops.tile.schedule.vector_bytes", lambda: 64):
        schedule = replace(GAUSSIAN.tile(Target()).schedule, unroll=1)
    source = GAUSSIAN.source(Target(), schedule)
    loop = re.search(r"^static void fold\(.*?^(  for \([^\n]*j[^\n]*\n.*?^  \}\n)", source, re.M | re.S)
    assert loop, "fold() has no loop over j to show"
    return f"```c\n{loop[1]}```"


def triton_functions():
    """What the Triton kernel does with a tile, and around it."""
    source = GAUSSIAN.source(Target(backend="triton"))
    functions = re.findall(r"^@triton\.jit\n.*?(?=\n\n\n|\Z)", source, re.M | re.S)
    fold = next(f for f in functions if "def fold(" in f)
    reduce = next(f for f in functions if "fold(" in f and "def fold(" not in f)
    return f"```py\n{fold}\n\n\n{reduce.rstrip()}\n```"


def machine_code():
    """The newest counts for compute capability 9.0, and by what they were compiled."""
    pytest.importorskip("triton")
    from bench import machine_code

    rows = [row for row in machine_code.latest() if row.target == "cuda:90"]
    last = json.loads(machine_code.RESULTS.read_text().splitlines()[-1])
    made = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return f"{machine_code.table(rows)}\n\n{made}; {last['date'][:10]}."


PEERS = ("pykeops", "torch", "faiss", "sklearn")


def speed():
    """The newest figures of each case of the table, and how they were made."""
    newest = report.newest(TABLE)
    if not newest:
        return "*Nothing measured yet.*"
    rows = [speed_row(newest[name]) for name in TABLE if name in newest]
    head = ["", "M x N", "unit", "tritonkeops", *(report.LABELS[peer] for peer in PEERS)]
    lines = [head, ["---"] * 3 + ["---:"] * (1 + len(PEERS)), *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", report.circumstances(newest)])


def speed_by_dimension():
    if not report.PICTURE.exists():
        return "*Nothing measured yet.*"
    return f"![Pairs per second against D]({report.PICTURE.relative_to(ROOT)})"


def speed_row(record):
    cells = [peer_cell(record, peer) for peer in PEERS]
    ours = f"{record['figures']['tritonkeops']:.3g}" if "tritonkeops" in record["figures"] else "failed"
    return [describe(CASES[record["case"]]), f"{record['M']} x {record['N']}", record["unit"], ours, *cells]


def peer_cell(record, peer):
    if peer not in record["figures"] or peer not in record["ratios"]:
        return "wrong" if record["failures"].get(peer, "").startswith("WRONG") else ""
    return f"{record['figures'][peer]:.3g} ({record['ratios'][peer]:.3g}x)"


def describe(case):
    """A case in words: its name, the reduction, the formula, and what is special about it."""
    op = case.reduction_op + (f" (K = {case.opt_arg})" if case.opt_arg else "")
    weight = f", `{case.formula2}`" if case.formula2 else ""
    gradient = f" and its gradient in {case.gradient_in}" if case.gradient_in else ""
    if case.gradients:
        gradient = f" and its gradients in {', '.join(case.gradients)}"
    if case.blocks is not None:
        gradient = f" over {case.blocks:.0%} of the blocks of 200 x 200"
    double = ", float64" if "float64" in str(case.dtype) else ""
    numpy = ", NumPy" if case.interface == "numpy" else ""
    kind = {"call": ", one call", "first call": ", first call", "throughput": ""}[case.measure]
    return f"{op} of `{case.formula}`{weight}{gradient}, D = {case.dims['x']}{double}{numpy}{kind}"


GENERATED = {
    **{f"stage {name}": lambda name=name: stage(name) for name in ("ast", "formula", "simplified", "tile")},
    "stage c": c_loop,
    "stage triton": triton_functions,
    "machine code": machine_code,
    "operators": operator_table,
    "reductions": reduction_table,
    "speed": speed,
    "speed by dimension": speed_by_dimension,
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_up_to_date(name):
    path = ROOT / "README.md"
    text = path.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    assert text.count(begin) == text.count(end) == 1
    head, rest = text.split(begin)
    refreshed = f"{head}{begin}\n{GENERATED[name]()}\n{end}{rest.split(end)[1]}"
    if REGENERATE:
        path.write_text(refreshed)
    else:
        assert text == refreshed, "TRITONKEOPS_REGENERATE=1 python -m pytest tests/test_readme.py writes it anew"


def test_the_table_of_speeds_is_read_from_what_the_bench_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(report, "versions", lambda: {"pykeops": "2.3", "numpy": "2.4.6"})
    assert speed() == "*Nothing measured yet.*"
    older, newer = ({"tritonkeops": t, "pykeops": 10 * t, "torch": 4.0} for t in (1.0, 0.5))
    report.save([Comparison(CASES["gaussian_grad_d3"], older)], threads=2)
    wrong = Comparison(CASES["argmin_d3"], {"tritonkeops": 0.1}, failures={"pykeops": "WRONG by 1.0e+00"})
    report.save([wrong, Comparison(CASES["gaussian_grad_d3"], newer)], threads=2)
    head, _, gradient, argmin, _, how = speed().splitlines()
    assert head.startswith("|  | M x N | unit | tritonkeops | PyKeOps |")
    assert gradient == (
        "| Sum of `Exp(-SqDist(x,y))*b` and its gradient in x, D = 3 | 10000 x 10000 | G pairs/s | 0.2 | 0.02 (10x) "
        "| 0.025 (8x) |  |  |"
    )
    assert argmin == "| ArgMin of `SqDist(x,y)`, D = 3 | 10000 x 10000 | G pairs/s | 1 | wrong |  |  |  |"
    assert "2 threads" in how and "PyKeOps 2.3, numpy 2.4.6" in how


@every_page
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / target).exists(), target
