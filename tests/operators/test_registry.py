"""Every operator of the registry, by its own entry alone: a new operator is tested here without new code.

Dims, the C kernels against the float64 evaluation (short vectors unrolled, long ones looped over; operands that vary
with i, with j, with both, with neither), first and second derivatives against torch's autograd of the same meaning.
"""

import itertools
import math

import pytest
import torch

from tritonkeops.formula.evaluate import evaluate
from tritonkeops.formula.ir import Apply, Category, Const, IllTyped, Operator, Var, variables, words
from tritonkeops.formula.text import spell
from tritonkeops.operators.derivatives import STRUCTURAL, Grad
from tritonkeops.operators.vector import Concat
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.simplify import simplify
from tritonkeops.tile.schedule import Schedule, vector_bytes

I, J, P = Category  # noqa: E741
OPERATORS = {name: op for name, op in words.items() if isinstance(op, Operator) and op not in STRUCTURAL}
ROWS = 37  # no multiple of any number of lanes: the last tile is masked
COLUMNS = 3  # equal ones, two of them folded together and one left over
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
DTYPES = (torch.float32, torch.float64)

every_operator = pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))


# ---- examples, from an operator's entry ----


def applied(op, dims, static, categories=(I, I, I), name="x"):
    """The operator on variables of these dims, numbered from 0; None where its rule rejects them."""
    operands = [Var(n, d, c, f"{name}{n}") for n, (d, c) in enumerate(zip(dims, itertools.cycle(categories)))]
    try:
        return Apply(op, operands, static)
    except IllTyped:
        return None


def base_dims(op):
    return op.example_dims or (3,) * len(op.operands)


def small_examples(op):
    """(dims, static): the entry's own example, then every mix of it with scalars that the rule admits."""
    base = base_dims(op)
    mixes = itertools.product(*[sorted({d, 1}, reverse=True) for d in base])
    return [(dims, op.example) for dims in mixes if applied(op, dims, op.example)]


def scaled(static):
    """Static parameters as they are and larger: all integers, or the first of some lists."""
    lists = [(each, (7 * each[0], *each[1:])) if takes_list(each) else (each,) for each in static]
    whole = [tuple(7 * each for each in static)] if static and not any(map(takes_list, static)) else []
    return [*itertools.product(*lists), *whole]


def takes_list(example):
    return isinstance(example, tuple)


def large_examples(op):
    """(dims, static) with more components than are unrolled: the example with operands and static parameters scaled."""
    base, found = base_dims(op), []
    one_is_enough = op.expand or any(map(takes_list, op.example))  # not every operand has loops of its own
    factors = itertools.product(*[(1,) if d == 1 else (1, 7, 49) if one_is_enough else (7, 49) for d in base])
    for scale, static in itertools.product(factors, scaled(op.example)):
        dims = tuple(d * s for d, s in zip(base, scale, strict=True))
        node = applied(op, dims, static)
        if node and max(*dims, node.dim, 0) > Schedule.unroll_dims:
            found.append((sum(dims), dims, static))
    wide = [(dims, static) for _, dims, static in sorted(found)[: 1 + (len(base) == 1 < len(op.example))]]
    if op.scalar and len(base) > 1:
        wide += [((1, *wide[0][0][1:]), op.example), ((*wide[0][0][:-1], 1), op.example)]
    return wide


def sample(op, operand, dim, dtype=torch.float64, rows=ROWS, exact=False):
    """(rows, dim) numbers of the operand's domain; with `exact` every other one is a multiple of 1/8, so that there
    are ties and whole numbers."""
    low, high = (op.domain or ((-2.0, 2.0),) * 9)[operand]
    generator = torch.Generator().manual_seed(1000 * operand + dim)
    x = low + (high - low) * torch.rand(rows, dim, generator=generator, dtype=torch.float64)
    if exact:
        x[::2] = ((x[::2] * 8).round() / 8).clamp(low, high)
    return x.to(dtype)


def dense(var, value):
    """A variable's rows as `evaluate` takes them: (dim, M or 1, 1), the columns being equal."""
    value = {I: value, J: value[:1], P: value[None]}[var.category]
    return value.double().T[:, :, None]


def reference(node, values):
    """(M or 1, dim) of a formula over dense float64 values."""
    like = torch.zeros(0, 1, 1, dtype=torch.float64)
    return evaluate(node, values, like)[:, :, 0].T


def concat(nodes):
    total = nodes[0]
    for node in nodes[1:]:
        total = Concat(total, node)
    return total


# ---- dims ----


@every_operator
def test_dims(op):
    node = applied(op, base_dims(op), op.example)
    assert node is not None
    values = {var: dense(var, sample(op, n, var.dim)) for n, var in enumerate(node.operands)}
    assert evaluate(node, values, torch.zeros(0, 1, 1, dtype=torch.float64)).shape[0] == node.dim
    assert expand(node).dim == node.dim


@pytest.mark.parametrize("op", [op for op in OPERATORS.values() if op.scalar], ids=str)
def test_elementwise_operators_broadcast_scalars(op):
    for dims in itertools.product((1, 3), repeat=len(op.operands)):
        assert applied(op, dims, op.example).dim == max(dims)
    for position in range(len(op.operands) if len(op.operands) > 1 else 0):
        dims = [3] * len(op.operands)
        dims[position] = 2
        assert applied(op, dims, op.example) is None


@every_operator
def test_wrong_number_of_arguments(op):
    node = applied(op, base_dims(op), op.example)
    args = [*node.operands, *node.static]
    with pytest.raises(IllTyped, match=op.name):
        op(*args, Const(1))
    if args:
        with pytest.raises(IllTyped, match=op.name):
            op(*args[: len(args) - len(op.defaults) - 1])


@pytest.mark.parametrize("op", [op for op in OPERATORS.values() if op.static], ids=str)
def test_static_parameters_are_integers(op):
    node = applied(op, base_dims(op), op.example)
    with pytest.raises(IllTyped, match="integer"):
        op(*node.operands, *node.static[:-1], 0.5)


# ---- values of the C back end ----


class Case:
    """A formula in which an operator stands in several places, and values for its variables."""

    def __init__(self):
        self.nodes, self.variables, self.values = [], [], []

    def variable(self, dim, category, value):
        var = Var(len(self.variables), dim, category, f"v{len(self.variables)}")
        self.variables.append(var)
        self.values.append({I: value, J: value[:1].repeat(COLUMNS, 1), P: value[0]}[category])
        return var

    def add(self, op, dims, static, categories, dtype, pairs=False):
        """The operator on fresh variables; with `pairs` its first operand varies with i and j."""
        args = [
            self.variable(d, c, sample(op, n, d, dtype, exact=True))
            for n, (d, c) in enumerate(zip(dims, itertools.cycle(categories)))
        ]
        if pairs and args:
            args[0] = args[0] + self.variable(1, J, torch.zeros(1, 1, dtype=dtype))
        self.nodes.append(Apply(op, args, static))

    def check(self, program, run, dtype, **how):
        if not self.variables or self.variables[0].category != I:
            self.variable(1, I, torch.zeros(ROWS, 1, dtype=dtype))
        node = concat(self.nodes)
        aliases = [f"{var.name} = {var.category.keyword}({var.dim})" for var in self.variables]
        (got,) = run(program(spell(node), aliases), self.values, unroll=2, **how)
        columns = COLUMNS if any(v.category == J for v in self.variables) else 1
        values = {v: dense(v, x) for v, x in zip(self.variables, self.values, strict=True)}
        start = 0
        for each in self.nodes:
            part, start = got[:, start : start + each.dim].double() / columns, start + each.dim
            torch.testing.assert_close(
                part, reference(each, values).expand_as(part), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype],
                equal_nan=True, msg=lambda m, each=each: f"{each!r}: {m}",
            )  # fmt: skip


@every_operator
def test_c_values(op, program, run):
    """Short vectors unrolled, long ones looped over, every mix with scalars; operands in i, j, both, neither."""
    case, dtype = Case(), torch.float64
    for dims, static in [small_examples(op)[0], *large_examples(op)[:1]]:
        case.add(op, dims, static, (I, I, I), dtype)
        case.add(op, dims, static, (J, J, J), dtype)
        case.add(op, dims, static, (I, J, P), dtype, pairs=True)
    for n, (dims, static) in enumerate(small_examples(op)[1:] + large_examples(op)[1:]):
        case.add(op, dims, static, [(I, P, J), (J, I, I)][n % 2], dtype, pairs=n % 2 == 0)
    case.check(program, run, dtype)


def batches(size):
    ops = list(OPERATORS.values())
    return [ops[n : n + size] for n in range(0, len(ops), size)]


@every_dtype
@pytest.mark.parametrize("ops", batches(14), ids=lambda ops: f"{ops[0]}..{ops[-1]}")
def test_c_values_of_many(ops, dtype, program, run):
    """Many operators side by side, everything unrolled in one loop over lanes, in both precisions."""
    case = Case()
    for op in ops:
        case.add(op, *small_examples(op)[0], (I, J, J), dtype, pairs=True)
    lanes = 2 * vector_bytes() // dtype.itemsize
    case.check(program, run, dtype, form="simt", lanes=lanes, width=lanes, unroll_dims=10**6)


# ---- derivatives ----


def plain(node):
    """The node as the compiler's passes leave it."""
    return simplify(expand(simplify(differentiate(node))))


def derivative_examples(op):
    """Applications whose derivatives differ in form: no broadcasting, then each operand broadcast."""
    return [(applied(op, dims, static), dims) for dims, static in small_examples(op)]


def torch_vjp(output, inputs, cotangent):
    """torch's adjoints, zeros where the output does not depend on an input; differentiable again."""
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(output, inputs, cotangent, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_same(node, values, expected, what):
    like = torch.zeros(0, 1, 1, dtype=torch.float64)
    found = evaluate(node, {v: x.detach() for v, x in values.items()}, like).expand(-1, ROWS, 1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


@every_operator
def test_derivatives_agree_with_autograd(op):
    """Grad(F, v, e) by each operand, and by each operand and e again, in float64."""
    like = torch.zeros(0, 1, 1, dtype=torch.float64)
    for node, dims in derivative_examples(op):
        inputs = list(node.operands)
        e, e2 = Var(len(dims), node.dim, I, "e"), None
        values = {v: dense(v, sample(op, n, v.dim)).requires_grad_() for n, v in enumerate(inputs)}
        values[e] = torch.linspace(-1, 1.5, node.dim * ROWS, dtype=torch.float64).view(-1, ROWS, 1).requires_grad_()
        output = evaluate(node, values, like).expand(-1, ROWS, 1)
        first = torch_vjp(output, [values[v] for v in inputs], values[e])
        for v, expected in zip(inputs, first, strict=True):
            once = plain(Grad(node, v, e))
            assert once.dim == v.dim
            assert_same(once, values, expected, once)
            e2 = Var(len(dims) + 1, v.dim, I, "e2")
            values[e2] = torch.cos(torch.arange(v.dim * ROWS, dtype=torch.float64)).view(v.dim, ROWS, 1)
            second = torch_vjp(expected, [values[w] for w in (*inputs, e)], values[e2])
            for w, expected2 in zip((*inputs, e), second, strict=True):
                twice = plain(Grad(Grad(node, v, e), w, e2))
                assert_same(twice, values, expected2, f"{spell(node)} by {v.name}, then {w.name}: {twice!r}")


@pytest.mark.parametrize("ops", batches(10), ids=lambda ops: f"{ops[0]}..{ops[-1]}")
def test_c_values_of_derivatives(ops, program, run):
    """Gradients of many operators in one C kernel, against autograd."""
    like, formulas, expected = torch.zeros(0, 1, 1, dtype=torch.float64), [], []
    seen, values = [], []

    def variable(dim, value):
        seen.append(Var(len(seen), dim, I, f"v{len(seen)}"))
        values.append(value)
        return seen[-1]

    variable(1, torch.zeros(ROWS, 1, dtype=torch.float64))
    for op in ops:
        dims, static = small_examples(op)[-2 if op.scalar and len(op.operands) > 1 else 0]
        inputs = [variable(d, sample(op, n, d)) for n, d in enumerate(dims)]
        node = Apply(op, inputs, static)
        e = variable(node.dim, torch.sin(torch.arange(ROWS * node.dim, dtype=torch.float64)).view(ROWS, -1))
        known = {v: dense(v, values[v.position]).requires_grad_() for v in (*inputs, e)}
        output = evaluate(node, known, like).expand(-1, ROWS, 1)
        for v, gradient in zip(inputs, torch_vjp(output, [known[v] for v in inputs], known[e]), strict=True):
            formulas.append(Grad(node, v, e))
            expected.append(gradient.detach()[:, :, 0].T)
    if not formulas:
        pytest.skip("constants have no derivatives")
    (got,) = run(program(spell(concat(formulas)), [f"{v.name} = Vi({v.dim})" for v in seen]), values, unroll=2)
    torch.testing.assert_close(got, torch.cat(expected, 1), rtol=1e-10, atol=1e-10)


def test_derivatives_by_other_variables_are_zero():
    x, y = Var(0, 3, I, "x"), Var(1, 2, J, "y")
    zero = plain(Grad(words["Exp"](x), y, Var(2, 3, I, "e")))
    assert isinstance(zero, Const) and zero.value == 0 and zero.dim == 2
    assert not variables(zero)


def test_examples_reach_long_vectors():
    """The scaling above finds a long example for all operators but those of scalars alone."""
    short = {name for name, op in OPERATORS.items() if not large_examples(op)}
    assert short == {"IntCst", "IntInv", "RatCst"}
    assert all(math.prod(dims) < 2 * 10**5 for op in OPERATORS.values() for dims, _ in large_examples(op))
