"""The command line: the stages of a formula, tuning, the machine, the cache, and the tables of the language."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tritonkeops
import tritonkeops.operators  # fills the registry of words
from tritonkeops import cache
from tritonkeops.formula.ir import Operator, ReductionOp, words

if TYPE_CHECKING:
    from tritonkeops.torch import Genred

_EMIT = (
    "ast", "formula", "simplified", "contracted", "tile", "c", "triton", "ttir", "ttgir", "llir", "ptx", "sass",
    "amdgcn",
)  # fmt: skip
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_DESCRIPTION = """\
A compiler from KeOps formulas to fused kernels.

    python -m tritonkeops FORMULA [ALIAS ...] [--emit STAGE] ...   print a stage of a formula's compilation
    python -m tritonkeops tune FORMULA [ALIAS ...] ...             compare schedules ahead of time, and keep the best
    python -m tritonkeops info                                     versions, compiler, CPU, devices, cache
    python -m tritonkeops cache list|clear                         the kernels kept between runs
    python -m tritonkeops tables                                   operators and reductions, in Markdown

for example

    python -m tritonkeops "Exp(-SqDist(x,y))*b" "x=Vi(3)" "y=Vj(3)" "b=Vj(1)" --reduction Sum --axis 1 --emit tile

A first argument that is none of the words explain, tune, info, cache and tables is a formula; `explain FORMULA ...`
takes any formula, one of these words too.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status, 1 for a formula or an option that does not fit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in (*_COMMANDS, "-h", "--help", "--version"):
        given.insert(0, "explain")
    parser = _parser()
    options = parser.parse_args([_guard(argument) for argument in given])
    if options.command is None:
        parser.print_help()
        return 0
    try:
        print("\n".join(_COMMANDS[options.command](options)), flush=True)
    except ValueError as error:  # FormulaError is one
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read us has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tritonkeops", usage="%(prog)s FORMULA|COMMAND ...", description=_DESCRIPTION, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"tritonkeops {tritonkeops.__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="")
    _explain_options(commands.add_parser("explain", help="print a stage of a formula's compilation (the default)"))
    _tune_options(commands.add_parser("tune", help="compare schedules for a device, and keep the best"))
    commands.add_parser("info", help="print versions, compiler, CPU, devices and cache")
    commands.add_parser("tables", help="print the tables of operators and reductions")
    kept = commands.add_parser("cache", help="list or clear the kernels kept between runs")
    kept.add_argument("action", choices=("list", "clear"))
    return parser


def _formula_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("formula", type=_unguard, help='such as "Exp(-SqDist(x,y))*b"')
    parser.add_argument("aliases", nargs="*", type=_unguard, help='its variables in order: "x=Vi(3)" "y=Vj(3)" ...')
    parser.add_argument("--reduction", default="Sum", help="default: Sum; a formula may hold its own")
    parser.add_argument("--axis", type=int, default=0, help="0 reduces over i (the default, as in PyKeOps), 1 over j")
    parser.add_argument("--opt-arg", type=int, metavar="K", help="K of the K-reductions")
    parser.add_argument("--formula2", type=_unguard, help="weight of LogSumExp, SumSoftMaxWeight and their kin")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="default: float32")
    schemes = ("auto", "direct_sum", "block_sum", "kahan_scheme")
    parser.add_argument("--sum-scheme", choices=schemes, default="auto", help="default: auto")


def _explain_options(parser: argparse.ArgumentParser) -> None:
    _formula_options(parser)
    parser.add_argument("--emit", choices=_EMIT, default="c", help="the stage to print (default: c)")
    parser.add_argument("--target", help="a GPU such as cuda:90 or hip:gfx942, for its stages; it need not be there")


def _tune_options(parser: argparse.ArgumentParser) -> None:
    _formula_options(parser)
    sizes = "rows i x rows j, separated by commas (default: 10000x10000)"
    parser.add_argument("--sizes", type=_sizes, default="10000x10000", help=sizes)
    parser.add_argument("--target", help="cpu, or a GPU such as cuda:90 (default: what is here)")
    modes = "predict from machine code, or measure (default: measure, if the target is here)"
    parser.add_argument("--mode", choices=("static", "measure"), help=modes)
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the tables there too")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw them; needs matplotlib")


def _sizes(text: str) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d+)x(\d+)", size.strip()) for size in text.split(",")]
    if None in found:
        raise argparse.ArgumentTypeError(f"expected sizes such as 10000x10000, got {text!r}")
    return [(int(size[1]), int(size[2])) for size in found if size]


def _guard(argument: str) -> str:
    """Keep argparse from taking a formula that starts with a minus for an option: ours are all long."""
    return f" {argument}" if re.match(r"-[^-]", argument) and argument != "-h" else argument


def _unguard(argument: str) -> str:
    return argument.removeprefix(" ") if argument.startswith(" -") else argument


def _genred(options: argparse.Namespace) -> Genred:
    from tritonkeops.torch import Genred  # torch takes seconds to load: not for --help, cache and tables

    return Genred(
        options.formula, options.aliases, options.reduction, options.axis, opt_arg=options.opt_arg,
        formula2=options.formula2, sum_scheme=options.sum_scheme,
    )  # fmt: skip


def _explain(options: argparse.Namespace) -> Iterator[str]:
    yield _genred(options).explain(options.emit, options.dtype, options.target).rstrip("\n")


def _tune(options: argparse.Namespace) -> Iterator[str]:
    # These import torch.
    from tritonkeops.runtime.ahead import place, tune
    from tritonkeops.runtime.report import check_matplotlib, picture, table

    if options.picture:
        check_matplotlib()
    caller, there = _genred(options)._call, place(options.target)
    mode = options.mode or ("measure" if there.device else "static")
    reports = [tune(caller, options.dtype, M, N, there, mode) for M, N in options.sizes]
    text = "\n\n".join(map(table, reports))
    if options.report:
        options.report.write_text(text + "\n")
    if options.picture:
        picture(reports, options.picture)
    yield text


# The machine ----------------------------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> Iterator[str]:
    rows = {"tritonkeops": tritonkeops.__version__, "python": platform.python_version()}
    rows |= {name: _version(name) for name in ("torch", "numpy", "lark", "triton")}
    rows |= _machine()
    entries = list(cache.entries())
    size = _bytes(sum(entry.size for entry in entries))
    rows["cache"] = f"{cache.directory()}, {len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {size}"
    rows |= {name: value for name, value in sorted(os.environ.items()) if name.startswith("TRITONKEOPS_")}
    width = max(map(len, rows)) + 2
    return (f"{name:{width}}{value}" for name, value in rows.items())


def _version(package: str) -> str:
    """The version that is installed; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, str]:
    """Compiler, CPU and devices, as the compiler pipeline sees them."""
    import torch  # takes a second to import, which --help and the tables need not wait for

    from tritonkeops.backends.c.build import compiler, no_compiler
    from tritonkeops.tile.schedule import vector_bytes

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "C compiler": _version_of(command) if (command := compiler()) else no_compiler(),
        "CPU": f"{platform.machine()}, vectors of {8 * vector_bytes()} bits",
        "threads": str(torch.get_num_threads()),
        "devices": ", ".join(["cpu", *gpus]),
    }


def _version_of(command: list[str]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return f"{' '.join(command)}: {done.stdout.partition(chr(10))[0]}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _cache(options: argparse.Namespace) -> Iterator[str]:
    if options.action == "clear":
        yield f"{cache.clear()} files removed from {cache.directory()}"
        return
    for entry in cache.entries():
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.written))
        yield f"{written}  {_bytes(entry.size):>8}  {entry.title}"


# The language ---------------------------------------------------------------------------------------------------------


def operator_table() -> str:
    """Every operator of the registry, as a table in Markdown."""
    rows = [(_written(op), op.doc) for op in words.values() if isinstance(op, Operator)]
    return _table(("operator", "meaning"), rows)


def _written(op: Operator) -> str:
    """How an operator is called, and how its symbol is written if it has one."""
    call = f"`{op.name}({', '.join(op.operands + op.static)})`"
    if op.symbol is None:
        return call
    infix = f" {op.symbol} ".join(op.operands) if len(op.operands) == 2 else op.symbol + op.operands[0]
    return f"{call}, `{infix}`"


def reduction_table() -> str:
    """Every reduction of the registry, as a table in Markdown."""
    reductions = [word for word in words.values() if isinstance(word, ReductionOp)]
    rows = [(f"`{op.name}`", _takes(op), _gives(op), op.doc) for op in reductions]
    return _table(("reduction", "takes", "gives", "meaning"), rows)


def _takes(op: ReductionOp) -> str:
    formulas = {(1, 1): "f", (1, 2): "f; may take g", (2, 2): "f, g"}[op.formulas]
    return formulas + ", K" * op.takes_k


def _gives(op: ReductionOp) -> str:
    return " and ".join({"value": "values", "index": "indices"}[output] for output in op.outputs)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _tables(options: argparse.Namespace) -> Iterator[str]:
    yield from ("## Operators", "", operator_table(), "", "## Reductions", "", reduction_table())


_COMMANDS = {"explain": _explain, "tune": _tune, "info": _info, "cache": _cache, "tables": _tables}

if __name__ == "__main__":
    sys.exit(main())
