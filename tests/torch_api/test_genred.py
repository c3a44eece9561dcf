"""Genred on tensors: its signature, its texts, and what explain prints. Calls are in runtime/test_call.py."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import tritonkeops
import tritonkeops.torch as api
from tritonkeops.errors import FormulaError
from tritonkeops.numpy import Genred as NumpyGenred
from tritonkeops.torch import Genred

ALIASES = ["x = Vi(3)", "y = Vj(3)"]
GAUSSIAN = ("Exp(-SqDist(x,y))", ALIASES)


def test_the_signature_is_keops_s() -> None:
    """PyKeOps 2.3, by inspect.signature; what is ours comes last."""
    for genred in (Genred, NumpyGenred):
        parameters = inspect.signature(genred).parameters
        assert {name: p.default for name, p in parameters.items()} == {
            "formula": inspect.Parameter.empty, "aliases": inspect.Parameter.empty, "reduction_op": "Sum", "axis": 0,
            "dtype": None, "opt_arg": None, "formula2": None, "cuda_type": None, "dtype_acc": "auto",
            "use_double_acc": False, "sum_scheme": "auto", "enable_chunks": True, "rec_multVar_highdim": False,
            "use_fast_math": True, "precision": "auto",
        }  # fmt: skip
        call = inspect.signature(genred.__call__).parameters
        assert {name: p.default for name, p in call.items() if p.kind is p.KEYWORD_ONLY} == {
            "backend": "auto", "device_id": -1, "ranges": None, "out": None, "mask": None, "neighbors": None,
        }  # fmt: skip


def test_positional_arguments_come_in_keops_s_order() -> None:
    x, y = torch.rand(5, 3), torch.rand(7, 3)
    result = Genred("SqDist(x,y)", ALIASES, "ArgKMin", 1, None, 2)(x, y)
    assert isinstance(result, torch.Tensor) and result.shape == (5, 2)


def test_the_default_axis_reduces_over_i() -> None:
    assert Genred(*GAUSSIAN)(torch.rand(5, 3), torch.rand(7, 3)).shape == (7, 1)  # type: ignore[union-attr]


def test_formula_errors_are_value_errors_raised_by_the_constructor() -> None:
    with pytest.raises(ValueError) as caught:
        Genred("x + z", ALIASES)
    assert isinstance(caught.value, FormulaError) and "unknown variable 'z'" in str(caught.value)


def test_formula_errors_survive_pickling() -> None:
    with pytest.raises(FormulaError) as caught:
        Genred("x + z", ALIASES)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_repr_names_the_formula() -> None:
    assert repr(Genred(*GAUSSIAN, axis=1)) == "Genred(Sum_Reduction(Exp(-SqDist(x, y)), 1))"


@pytest.mark.parametrize("stage,start", [
    ("ast", "call Exp"), ("formula", "%x = Vi(0, 3) : 3 {i}"), ("simplified", "%"), ("contracted", "// "),
    ("tile", "tile.program"), ("c", "/*"), ("source", "/*"),
])  # fmt: skip
def test_explain(stage: str, start: str) -> None:
    for dtype in ("float32", "float64"):
        assert Genred(*GAUSSIAN, axis=1).explain(stage, dtype).startswith(start)


def test_explain_names_the_stages_it_knows() -> None:
    with pytest.raises(ValueError, match=r"one of ast, formula, simplified, contracted, tile, c, triton, .*; got 'C'"):
        Genred(*GAUSSIAN).explain("C")


def test_explained_source_names_the_user_s_variables_and_the_formula() -> None:
    text = Genred("Exp(-SqDist(points,centres))", ["points = Vi(3)", "centres = Vj(3)"], axis=1).explain("c")
    assert "points" in text and "centres" in text and "Exp(-SqDist(points, centres))" in text


NAMES = [
    "int", "double", "for", "while", "return", "i", "j", "k1", "l", "M", "N", "row", "rows", "cols", "call",
    "run", "in", "r", "a", "b", "acc", "s", "v", "value", "index", "exp", "sqrt", "real", "acc_t", "idx_t",
    "stride", "t1", "t2", "x_0", "main", "NAN", "INFINITY", "f32", "select_f32", "NULL", "_", "__", "data",
    "lane", "unroll", "u", "j0", "e",
]  # fmt: skip


@pytest.mark.parametrize(
    "names", [NAMES[n : n + 6] for n in range(0, len(NAMES), 6)], ids=lambda names: ",".join(names)
)
def test_any_name_may_be_a_variable_s(names: list[str]) -> None:
    """Keywords and names of C, of the kernel's frame, and of temporaries; several at once."""
    aliases = [f"{name} = {('Vi', 'Vj', 'Pm')[n % 3]}(2)" for n, name in enumerate(names)]
    args = [torch.rand((4, 2) if n % 3 < 2 else 2, dtype=torch.float64) for n in range(len(names))]
    total = sum(x[:, None] if n % 3 == 0 else x[None] for n, x in enumerate(args))
    result = Genred(" + ".join(names), aliases, axis=1)(*args)
    assert isinstance(total, torch.Tensor)
    torch.testing.assert_close(result, total.expand(4, 4, 2).sum(1))


def test_names_that_differ_in_their_ending_only() -> None:
    aliases = ["x = Vi(2)", "x_ = Vj(2)", "x_1 = Vj(2)", "x1 = Vi(1)", "x_1_ = Vj(1)", "x_0 = Pm(2)"]
    shapes = [(4, 2), (3, 2), (3, 2), (4, 1), (3, 1), (2,)]
    args = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    result = Genred("x*x_ + x_1*x1 - x_1_*x_0", aliases, axis=1)(*args)
    x, x_, x_1, x1, x_1_, x_0 = args
    dense = x[:, None] * x_ + x_1 * x1[:, None] - (x_1_ * x_0)[None]
    torch.testing.assert_close(result, dense.sum(1))


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_importing_loads_neither_triton_nor_the_parser() -> None:
    """torch takes its second; nothing of ours may add another."""
    done = run(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import tritonkeops.torch\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'triton', 'lark', 'sympy', 'scipy', 'pandas', 'sklearn', 'pykeops', 'tqdm', 'asyncio'}))\n"
        "tritonkeops.torch.Genred('x', ['x = Vi(1)'])\n"
        "print('lark' in sys.modules, 'triton' in sys.modules)"
    )
    assert done.stdout == "[]\nTrue False\n", done.stderr


def test_nothing_is_printed() -> None:
    done = run(
        "import torch, tritonkeops.torch, tritonkeops.numpy\n"
        "x = torch.rand(5, 3)\n"
        "tritonkeops.torch.Genred('SqDist(x,y)', ['x = Vi(3)', 'y = Vj(3)'], axis=1)(x, x)\n"
        "tritonkeops.numpy.Genred('x*y', ['x = Vi(3)', 'y = Vj(3)'], 'ArgMin', axis=1)(x.numpy(), x.numpy())"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exports() -> None:
    assert api.__all__ == ["Genred"] and isinstance(tritonkeops.__version__, str)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axis": 1.0}, ValueError, "Axis should be 0 or 1; got 1.0"),
        ({"axis": "1"}, ValueError, "Axis should be 0 or 1; got '1'"),
        ({"aliases": None}, TypeError, "aliases: expected a list of strings"),
        ({"reduction_op": None}, TypeError, "reduction_op: expected a name such as 'Sum'"),
        ({"reduction_op": "KMin", "opt_arg": 1 << 70}, FormulaError, "expected at most 1048576"),
        ({"reduction_op": "LogSumExp", "formula2": "Sum_Reduction(x, 1)"}, FormulaError, "not a reduction"),
    ],
)
def test_constructor_arguments_of_the_wrong_kind(arguments, error, message):
    with pytest.raises(error, match=message):
        Genred(**{"formula": "x - y", "aliases": ["x = Vi(3)", "y = Vj(3)"], **arguments})


def test_aliases_may_come_from_any_iterable():
    genred = Genred("x - y", (f"{name} = {kind}(1)" for name, kind in (("x", "Vi"), ("y", "Vj"))), axis=torch.tensor(1))
    assert genred(torch.ones(2, 1), torch.zeros(3, 1)).tolist() == [[3.0], [3.0]]


def test_sparse_tensors_are_refused_and_negated_views_are_read_right():
    genred = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    y = torch.ones(3, 1)
    with pytest.raises(TypeError, match="x = Vi\\(1\\): expected a dense tensor"):
        genred(torch.eye(2)[:, :1].to_sparse(), y)
    negated = torch.view_as_complex(torch.arange(1.0, 5.0).reshape(2, 1, 2)).conj().imag
    assert negated.is_neg()
    assert torch.equal(genred(negated, y), 3 * negated)


def test_tensors_without_memory_give_tensors_without():
    genred = Genred("x + y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    with FakeTensorMode():
        result = genred(torch.ones(4, 2, 1), torch.ones(3, 1))
        assert isinstance(result, FakeTensor) and result.shape == (4, 2, 1)
        with pytest.raises(ValueError, match=r"y = Vj\(1\): expected shape"):
            genred(torch.ones(2, 1), torch.ones(3, 2))


@pytest.mark.parametrize("known", [False, True])
def test_a_result_given_is_no_place_for_gradients(known):
    """Whether the arguments' signature is a new one or that of plain tensors seen before."""
    genred = Genred("x + y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    x, y, out = torch.ones(2, 1), torch.ones(3, 1), torch.empty(2, 1)
    if known:
        genred(x, y)
    with pytest.raises(ValueError, match="out: expected None where arguments require gradients"):
        genred(x.clone().requires_grad_(), y, out=out)
    with pytest.raises(ValueError, match=r"out: expected None .* under a transform of torch"):
        torch.func.vmap(lambda x: genred(x, y, out=out))(x.expand(4, 2, 1))
    with pytest.raises(ValueError, match=r"out: expected None .* under a transform of torch"):
        torch.func.vmap(lambda out: genred(x, y, out=out))(out.expand(4, 2, 1))
    assert genred(x, y, out=out) is out


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("place", [0, 1])
def test_tensors_of_other_layouts_are_named(place):
    genred = Genred("x + y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    for other in (torch.ones(3, 1).to_mkldnn(), torch.nested.nested_tensor([torch.ones(3, 1)] * 2)):
        args = [torch.ones(3, 1)] * 2
        args[place] = other
        with pytest.raises(TypeError, match=f"{['x = Vi', 'y = Vj'][place]}.*: expected a dense tensor, got "):
            genred(*args)
        with pytest.raises(TypeError, match="out: expected a dense tensor, got "):
            genred(torch.ones(3, 1), torch.ones(3, 1), out=other)


def test_deep_formulas_of_parameters_are_emitted_in_no_time():
    formula = "y * " + "Softplus(" * 40 + "p" + ")" * 40
    assert "log1p_f32" in Genred(formula, ["y = Vj(1)", "p = Pm(1)"], axis=1).explain("c")
