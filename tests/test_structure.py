"""The shape of the package: imports go down, none hide in functions without a reason, nothing is a grab bag."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tritonkeops"
FLOORS = {
    "tritonkeops": 0, "errors": 0, "cache": 0,
    "formula": 1,
    "operators": 2,
    "frontend": 3,
    "passes": 4, "tile": 4,
    "backends": 5,
    "compiler": 6,
    "runtime": 7,
    "torch": 8, "numpy": 8,
    "compat": 9, "__main__": 9,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES
}


def part(module: str) -> str:
    """The word of FLOORS that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports(path: Path) -> Iterator[tuple[str, ast.stmt, bool]]:
    """What a file imports of this package, where, and whether inside a function."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            modules = set(MODULES.values())
            names = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules else node.module
                for alias in node.names
            ]
        yield from ((name, node, id(node) in inside) for name in names)  # type: ignore[misc]


def ids(path: Path) -> str:
    return MODULES[path]


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_go_down(path: Path) -> None:
    """A module imports its own part and lower floors."""
    floor = FLOORS[part(MODULES[path])]
    for name, node, inside in imports(path):
        if name.split(".")[0] != "tritonkeops" or name == "tritonkeops":
            continue
        if inside:
            continue  # has a written reason: test_imports_inside_functions_have_a_reason
        lower = FLOORS[part(name)] < floor or part(name) == part(MODULES[path])
        assert lower, f"{path}:{node.lineno}: floor {floor} imports {name}, floor {FLOORS[part(name)]}"


def test_every_part_has_a_floor() -> None:
    assert {part(module) for module in MODULES.values()} <= set(FLOORS)


def test_there_are_no_cycles() -> None:
    graph = {
        MODULES[path]: {name for name, _, inside in imports(path) if name in set(MODULES.values()) and not inside}
        for path in FILES
    }
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"cycle: {' -> '.join((*trail, module))}"
        if module not in state:
            state[module] = 1
            for below in sorted(graph[module] - {module}):
                visit(below, (*trail, module))
            state[module] = 2

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_inside_functions_have_a_reason(path: Path) -> None:
    """A comment at the imports, on one of their lines or above them; or the function's docstring says "import"."""
    lines = path.read_text().splitlines()
    documented = {
        line
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and "import" in (ast.get_docstring(function) or "")
        for line in range(function.lineno, (function.end_lineno or 0) + 1)
    }
    for name, node, inside in imports(path):
        if inside and node.lineno not in documented:
            first = node.lineno - 1
            while re.match(r"\s*((from|import)\b.*)?$", lines[first]):
                first -= 1
            near = lines[first : node.lineno]
            assert any("#" in line for line in near), (
                f"{path}:{node.lineno}: import of {name} inside a function, without a reason"
            )


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_grab_bags(path: Path) -> None:
    assert not {"utils", "util", "common", "helpers", "helper", "misc"} & set(MODULES[path].split("."))


def code(path: Path) -> str:
    """A file without its comments and docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) and node.body
    }
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    kept = [
        t for t in tokens if t.type != tokenize.COMMENT and not (t.type == tokenize.STRING and t.start[0] in docstrings)
    ]
    return " ".join(token.string for token in kept)


ABSTRACT = [path for path in FILES if part(MODULES[path]) in ("operators", "tile", "formula", "passes")]


@pytest.mark.parametrize("path", ABSTRACT, ids=ids)
def test_no_target_language_above_the_back_ends(path: Path) -> None:
    """No operator, reduction, pass or lowering rule holds Triton's or C's text, or knows a back end."""
    text = code(path)
    assert not re.search(r"\btl\s*\.\s*\w+|\btriton\b(?!keops)|\bimport ctypes", text)
    assert not re.search(
        r"#include|\b(fmaf?|expf|sqrtf|powf|int64_t|size_t)\s*\(|;\s*\\n|\bdouble\b|\bconst float\b", text
    )
    assert not any(part(name) == "backends" for name, _, _ in imports(path) if name.startswith("tritonkeops."))


@pytest.mark.parametrize("path", [path for path in ABSTRACT if part(MODULES[path]) == "operators"], ids=ids)
def test_operators_do_not_know_torch(path: Path) -> None:
    """Their meaning is a function of the abstract namespace m."""
    assert not {name.split(".")[0] for name, _, _ in imports(path)} & {"torch", "numpy", "ctypes"}


def test_nothing_is_evaluated() -> None:
    """No eval, exec or compile of text anywhere."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{path}:{node.lineno}"


def test_the_grammar_names_no_operator() -> None:
    from tritonkeops.formula.ir import words
    from tritonkeops.operators import elementwise  # fills the registry

    assert elementwise is not None
    rules = "\n".join(
        line
        for line in (PACKAGE.parent / "grammar" / "formula.lark").read_text().splitlines()
        if not line.startswith("//")
    )
    assert not [word for word in words if re.search(rf"\b{word}\b", rules)]


def test_functions_are_short() -> None:
    """DESIGN.md: median under 8 lines, nine in ten under 30 (blank lines and docstrings aside, signatures included)."""
    lengths = sorted(
        (function.end_lineno or 0) - function.lineno + 1
        for path in FILES
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
    )
    assert lengths[len(lengths) // 2] <= 8 and lengths[len(lengths) * 9 // 10] <= 30, lengths[len(lengths) // 2]
