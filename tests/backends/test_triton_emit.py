"""The text of the Triton back end: every name is defined before it is read, whatever a user's variables are called.

Text only; Triton is not needed. What it computes: tests/interpreted. What it compiles to: test_triton_compiles.py.
"""

import ast
import builtins
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backends.test_c_kernels import FORMULAS
from tests.formulas import REGENERATE, reductions
from tests.operators.test_reductions import REDUCTIONS
from tests.operators.test_registry import I, J, P, applied, every_operator, large_examples, small_examples
from tritonkeops.compiler import Program, Target
from tritonkeops.formula.text import spell
from tritonkeops.torch import Genred

GOLDENS, ROOT = Path(__file__).parent / "goldens", Path(__file__).parents[2]
WIDEST = 120
POINTS = ["x = Vi(3)", "y = Vj(3)"]
GAUSSIAN = ("Exp(-SqDist(x, y)) * b", [*POINTS, "b = Vj(1)"])


def source(formula, aliases, name="Sum", axis=1, k=0, formula2=None, **target):
    return Program(formula, aliases, name, axis, k, formula2).source(Target(backend="triton", **target))


# ---- the checker ----


class Reader:
    """Statements in the order of execution: what they read has to be defined by then.

    As in Triton, what is first assigned in a loop or in one branch of an `if` ends with it.
    """

    def __init__(self, tree):
        self.tree, self.problems = tree, []
        self.functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}

    def check(self):
        known, named, read = set(dir(builtins)), [], set()
        for statement in self.tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                new = {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
            elif isinstance(statement, ast.Assign):
                self.expression(statement.value, known, read)
                new = {target.id for target in statement.targets}
            elif isinstance(statement, ast.FunctionDef):
                read |= self.function(statement, known | {statement.name})
                new = {statement.name}
            else:
                new = set()
            self.claim(set(named) & new, f"line {statement.lineno}: assigned again")
            named += new
            known |= new
        kernels = set(self.functions) - {"fold", "refine", "merge_two", "finish"}
        self.claim(set(named) - read - kernels - {"triton", "tl"}, "module: never read")
        return self.problems

    def claim(self, names, problem):
        self.problems += [f"{name}: {problem}" for name in sorted(names)]

    def function(self, function, known):
        """What a function reads of the module."""
        assert [ast.unparse(d) for d in function.decorator_list] == ["triton.jit"], function.name
        arguments = function.args
        assert not (arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg)
        params = [argument.arg for argument in arguments.args]
        self.claim({p for p in params if params.count(p) > 1}, f"{function.name}: a parameter twice")
        self.claim(known & set(params), f"{function.name}: a parameter hides a name of the module")
        read, assigned = {"triton"}, set()
        self.block(function.body, known | set(params), read, assigned)
        self.claim(set(params) - read, f"{function.name}: a parameter that is never read")
        self.claim(assigned - read, f"{function.name}: a variable that is never read")
        self.claim(assigned & known, f"{function.name}: a variable hides a name of the module")
        return read - set(params) - assigned

    def block(self, statements, known, read, assigned):
        """Read statements; returns what is defined behind them."""
        for statement in statements:
            known = self.statement(statement, set(known), read, assigned)
        return known

    def statement(self, statement, known, read, assigned):
        new = set()
        if isinstance(statement, ast.Assign):
            self.expression(statement.value, known, read)
            new = {n.id for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        elif isinstance(statement, ast.AugAssign):
            self.expression(statement.value, known, read)
            self.expression(statement.target, known, read)
        elif isinstance(statement, ast.For):
            self.expression(statement.iter, known, read)
            assigned.add(statement.target.id)
            read.add(statement.target.id)  # a loop may do the same thing so many times
            self.block(statement.body, known | {statement.target.id}, read, assigned)
        elif isinstance(statement, ast.If):
            self.expression(statement.test, known, read)
            branches = [self.block(b, known, read, assigned) for b in (statement.body, statement.orelse)]
            new = branches[0] & branches[1]
        elif isinstance(statement, ast.While):
            self.expression(statement.test, known, read)
            self.block(statement.body, known, read, assigned)
        elif isinstance(statement, (ast.Return, ast.Expr)):
            if statement.value:
                self.expression(statement.value, known, read)
        else:
            raise AssertionError(f"line {statement.lineno}: {type(statement).__name__}")
        assigned |= new - known
        return known | new

    def expression(self, expression, known, read):
        for node in ast.walk(expression):
            if isinstance(node, ast.Name):
                read.add(node.id)
                self.claim({node.id} - known, f"line {node.lineno}: not defined")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
                expected = len(self.functions[node.func.id].args.args)
                if len(node.args) != expected:
                    self.problems.append(f"{node.func.id}: line {node.lineno}: called with {len(node.args)} arguments")


def checked(*args, **target):
    """The source, once Python has compiled it and nothing in it is undefined, doubled or idle."""
    text = source(*args, **target)
    compile(text, "kernel", "exec")
    assert Reader(ast.parse(text)).check() == []
    return text


def function(text, name):
    """The source of one function."""
    (found,) = [f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef) and f.name == name]
    return ast.get_source_segment(text, found)


def kernel(text, suffix=""):
    """The source of a kernel: the one that reduces, or one with a suffix."""
    (name,) = re.findall(rf"^def ([a-z_]+_[0-9a-f]{{8}}{suffix})\(", text, re.MULTILINE)
    return function(text, name)


def declared(variables):
    return [f"{v.name} = {v.category.keyword}({v.dim})" for v in variables] or ["x = Vi(1)"]


@pytest.mark.parametrize(("before", "after", "problem"), [
    ("t1 = ", "t11 = ", "t1: line"),
    ("INF = ", "INFINITY = ", "INF: line"),
    ("return s + ", "return ss + ", "ss: line"),
    ("(j, s, ", "(j, s, s, ", "s: fold: a parameter twice"),
    ("(j, s, ", "(j, s, more, ", "more: fold: a parameter that is never read"),
    ("(j, s, ", "(j, s, tl, ", "tl: fold: a parameter hides"),
    ("BLOCK_I = ", "IDLE = tl.constexpr(1)\nBLOCK_I = ", "IDLE: module: never read"),
    ("s = merge_two(s, ", "s = merge_two(", "merge_two: line"),
    ("    if full < end:", "    other_s += 1\n    if full < end:", "other_s: line"),
])  # fmt: skip
def test_the_checker_sees(before, after, problem):
    text = source("x - y", POINTS, "Min") if "INF" in before else source(*GAUSSIAN)
    assert before in text and Reader(ast.parse(text)).check() == []
    found = Reader(ast.parse(text.replace(before, after, 1))).check()
    assert any(each.startswith(problem) for each in found), found


# ---- every operator, reduction and kind of target ----

WAYS = [
    {},
    {"few_rows": 1, "dtype": "float16"},
    {"dtype": "float64", "dtype_acc": "float64", "batch_dims": 2},
    {"few_rows": 64, "batch_dims": 1, "long": True},
    {"few_rows": 16, "batch_dims": 2, "dtype": "bfloat16", "dtype_acc": "float64"},
]


@every_operator
def test_operators(op):
    """Short vectors and long ones; operands in i, j, both, neither."""
    examples = [*small_examples(op)[:2], *large_examples(op)[:1]]
    places = [(I, J, P), (J, I, I), (P, P, P), (I, I, I), (J, J, J)]
    for n, (dims, static) in enumerate(examples):
        for m, categories in enumerate(places[n::2]):
            node = applied(op, dims, static, categories)
            checked(spell(node), declared(node.operands), **WAYS[(n + m) % len(WAYS)])


@pytest.mark.parametrize("op", REDUCTIONS.values(), ids=REDUCTIONS)
@pytest.mark.parametrize("dim", [1, 3, 20])
def test_reductions(op, dim):
    aliases = [f"x = Vi({dim})", f"y = Vj({dim})", f"z = Vj({dim})", "w = Vj(1)"]
    weight = "w" if op.formulas[0] == 2 else None
    for k in (3, 40) if op.takes_k and dim < 20 else (2,) if op.takes_k else (0,):
        for way in WAYS if k < 40 else WAYS[:2]:
            checked("x * y + z", aliases, op.name, 1, k, weight, **way)
        if op.compensated:
            checked("x * y + z", aliases, op.name, 1, k, weight, sum_scheme="kahan_scheme", batch_dims=1)


def numbered(name, axis=1):
    """The arguments of `source` for one of FORMULAS."""
    formula, aliases, reduction = FORMULAS[name]
    return formula, aliases, reduction, axis, 5 * reduction.startswith("K"), "b" if reduction == "SoftMax" else None


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("axis", [0, 1])
def test_formulas(name, axis):
    for way in WAYS:
        checked(*numbered(name, axis), **way)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=reductions((1, 3, 20), 2), way=st.sampled_from(WAYS))
def test_random_formulas(drawn, way):
    node, pool = drawn
    checked(spell(node), declared(pool), axis=node.axis, **way)


# ---- names ----

NAMES = [
    "tl", "triton", "range", "i", "j", "u", "fold", "merge_two", "x_row", "x_0", "M", "N", "INF", "INFINITE", "tile",
    "lambda", "class", "None", "mul_rn", "exp", "pow", "load", "_", "__", "_1", "t1", "s", "other_s", "held", "value",
    "entry", "size_1", "MASKED", "SPLIT", "BLOCK_I", "packed_j", "v", "sum_j1", "batch0", "row_i",
]  # fmt: skip
COLLIDING = [
    "x,x_row", "x,x_0", "x_,x", "tl,tl_", "_,__", "_,v", "x_1,x", "_1,v1", "x,x_batch0", "s,other_s", "lambda,lambda_",
    "t1,t", "cx_0,x", "x,size_1",
]  # fmt: skip


def check_names(first, second):
    aliases = [f"{first} = Vi(2)", f"{second} = Vj(2)", "p = Pm(2)"]
    for name, formula in [("Sum", "Exp(-SqDist({0}, {1})) * p"), ("LogSumExp", "Exp(p * {0} - {1})")]:
        for way in WAYS[:3]:
            text = checked(formula.format(first, second), aliases, name, **way)
            described = text.split("schedule:")[0].splitlines()[2:5]
            assert len({line.partition(":")[0] for line in described}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_users_may_call_variables_what_they_like(name):
    check_names(name, "yy")


@pytest.mark.parametrize("names", COLLIDING)
def test_names_that_would_collide(names):
    first, second = names.split(",")
    check_names(first, second)
    check_names(second, first)


# ---- what the text says ----


@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "Min", "ArgMin", "Max_ArgMax", "KMin_ArgKMin"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_full_tiles_are_not_masked(name, way):
    """Rows beyond the end replace values in the last tile alone; loads never need a mask."""
    text = source("x - y" if name == "Max_ArgMax" else "SqDist(x, y)", POINTS, name, 1, 3 if "K" in name else 0, **way)
    fold = function(text, "fold")
    assert "mask" not in fold.replace("MASKED", "")
    for line in fold.splitlines()[1:]:
        uses = re.search(r"\b(valid|N)\b", line.partition("=")[2])
        assert not uses or "if MASKED else" in line or line.strip().startswith("valid ="), line


def test_products_of_one_axis_are_rounded():
    """c * x - c * y is 0 where x is y, only if neither product is contracted with the difference."""
    for few_rows, places in (0, ["", "_pack_j"]), (1, [""]):
        text = source(*GAUSSIAN, few_rows=few_rows)
        assert len(re.findall(r"mul_rn\(1\.20\d+, [xy]_[012]\)", text)) == 6
        for place in places:
            assert not re.search(r"\d\.\d+ \*|\* \d\.\d", kernel(text, place))
        assert not re.search(r"\d\.\d+ \*|\* \d\.\d", function(text, "fold"))


@pytest.mark.parametrize("f", ["Normalize({})", "MatVecMult(p, {})", "Exp({0}) * {0} + p"])
def test_both_axes_are_computed_alike(f):
    """So that f(x) - f(y) is 0 where x is y: x ahead of the loop, y in a kernel of its own. In both of them no product
    can be contracted with a sum, in one of them alone."""
    parameters = 9 if "Mat" in f else 3
    text = source(f"Norm2({f.format('x')} - {f.format('y')})", [*POINTS, f"p = Pm({parameters})"])
    mine, other = kernel(text).partition("begin = ")[0], kernel(text, "_pack_j")
    products = [sorted(re.findall(r"mul_rn\([^)]*\)", each.replace("x_", "y_"))) for each in (mine, other)]
    assert products[0] == products[1] != []
    for line in (mine + other).splitlines():
        assert not re.search(r"\b[a-z]+_?\d \* [a-z]|\* [a-z]+_?\d\b", line), line


def test_text_is_the_same_in_another_process():
    """Whatever the order of sets: compiled kernels are found again by it."""
    cases = [numbered(name) for name in ("gradient", "branches", "distances", "matrix", "long softmax")]
    code = (
        "from tritonkeops.compiler import Program, Target\n"
        f"for case in {cases!r}: print(Program(*case).source(Target(backend='triton')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "1"}, cwd=ROOT, check=True,
        capture_output=True, text=True
    ).stdout  # fmt: skip
    assert found == "".join(Program(*case).source(Target(backend="triton")) + "\n" for case in cases)


def test_definitions_are_wrapped():
    for name in FORMULAS:
        heads = re.findall(r"^def .*?:$", source(*numbered(name)), re.MULTILINE | re.DOTALL)
        assert all(len(line) <= WIDEST for head in heads for line in head.splitlines())


# ---- what a user sees ----

SHOWCASE = {
    "gaussian": (*GAUSSIAN, "Sum", 0),
    "logsumexp": ("-SqDist(x, y)", POINTS, "LogSumExp", 0),
    "nearest": ("SqDist(x, y)", POINTS, "ArgKMin", 3),
    "products": ("Exp(-SqDist(x, y)) * b", ["x = Vi(64)", "y = Vj(64)", "b = Vj(1)"], "Sum", 0),
}


@pytest.mark.parametrize("name", SHOWCASE)
def test_golden(name):
    """Regenerate with TRITONKEOPS_REGENERATE=1 pytest tests/backends/test_triton_emit.py, and read the difference."""
    formula, aliases, reduction, k = SHOWCASE[name]
    text = Genred(formula, aliases, reduction, axis=1, opt_arg=k or None).explain("triton")
    path = GOLDENS / f"{name}.triton.txt"
    if REGENERATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert text == checked(formula, aliases, reduction, 1, k)
    code = text.partition("import triton")[2]
    assert all(len(line) <= WIDEST for line in code.splitlines())
