"""Arguments at a call: what is checked and said, and the layouts that are served."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import pickle
import threading
import tracemalloc
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from tritonkeops.backends.kernel import Layout
from tritonkeops.formula.ir import Category, Var
from tritonkeops.runtime.call import _is_short
from tritonkeops.torch import Genred

no_gpu = pytest.mark.skipif(torch.cuda.is_available() or torch.xpu.is_available(), reason="there is a GPU")
FORMULA, ALIASES = "Exp(-p*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "p = Pm(1)"]


def tensors(dtype: torch.dtype = torch.float64, M: int = 5, N: int = 7, batch: tuple[int, ...] = ()) -> list[Tensor]:
    generator = torch.Generator().manual_seed(M * N)
    shapes = [(*batch, M, 3), (*batch, N, 3), (*batch, N, 2), (*batch, 1)]
    return [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def expected(x: Tensor, y: Tensor, b: Tensor, p: Tensor) -> Tensor:
    kernel = torch.exp(-p[..., None] * ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1))
    return kernel @ b


@pytest.fixture(scope="module")
def gaussian() -> Genred:
    return Genred(FORMULA, ALIASES, axis=1)


# Arguments that do not fit ------------------------------------------------------------------------------------------


def changed(place: int, tensor: Any, dtype: torch.dtype = torch.float64) -> list[Any]:
    args: list[Any] = tensors(dtype)
    args[place] = tensor
    return args


F64 = torch.float64
WRONG = {
    "too few": (
        ValueError,
        tensors()[:3],
        r"expected 4 tensors \(x = Vi\(3\), y = Vj\(3\), b = Vj\(2\), p = Pm\(1\)\), got 3",
    ),
    "too many": (ValueError, [*tensors(), tensors()[0]], "expected 4 tensors .*, got 5"),
    "none": (ValueError, [], "expected 4 tensors .*, got 0"),
    "a list": (TypeError, changed(0, [[1.0, 2.0, 3.0]]), r"x = Vi\(3\): expected a tensor, got list"),
    "an array": (TypeError, changed(1, tensors()[1].numpy()), r"y = Vj\(3\): expected a tensor, got ndarray"),
    "a number": (TypeError, changed(3, 0.5), r"p = Pm\(1\): expected a tensor, got float"),
    "None": (TypeError, changed(2, None), r"b = Vj\(2\): expected a tensor, got NoneType"),
    "int": (
        TypeError,
        changed(1, torch.ones(7, 3, dtype=torch.int64)),
        r"y = Vj\(3\): expected float32 or float64, got torch.int64",
    ),
    "bool": (
        TypeError,
        changed(0, torch.ones(5, 3, dtype=torch.bool)),
        r"x = Vi\(3\): expected float32 or float64, got torch.bool",
    ),
    "complex": (TypeError, changed(0, torch.ones(5, 3, dtype=torch.complex64)), r"x = Vi\(3\): .* got torch.complex64"),
    "half": (
        NotImplementedError,
        tensors(torch.float16),
        r"x = Vi\(3\): expected float32 or float64 on the CPU, got torch.float16",
    ),
    "bfloat16": (
        NotImplementedError,
        tensors(torch.bfloat16),
        r"x = Vi\(3\): expected float32 or float64 on the CPU, got torch.bfloat16",
    ),
    "mixed": (
        TypeError,
        changed(2, torch.ones(7, 2)),
        r"b = Vj\(2\) is torch.float32 and x = Vi\(3\) is torch.float64: expected one dtype",
    ),
    "dim of x": (
        ValueError,
        changed(0, torch.ones(5, 4, dtype=F64)),
        r"x = Vi\(3\): expected shape \(..., M, 3\), got \(5, 4\)",
    ),
    "dim of y": (
        ValueError,
        changed(1, torch.ones(7, 1, dtype=F64)),
        r"y = Vj\(3\): expected shape \(..., N, 3\), got \(7, 1\)",
    ),
    "1-D x": (
        ValueError,
        changed(0, torch.ones(3, dtype=F64)),
        r"x = Vi\(3\): expected shape \(..., M, 3\), got \(3,\)",
    ),
    "0-D y": (
        ValueError,
        changed(1, torch.tensor(3.0, dtype=F64)),
        r"y = Vj\(3\): expected shape \(..., N, 3\), got \(\)",
    ),
    "dim of p": (
        ValueError,
        changed(3, torch.ones(2, dtype=F64)),
        r"p = Pm\(1\): expected shape \(..., 1\), got \(2,\)",
    ),
    "lengths": (ValueError, changed(2, torch.ones(8, 2, dtype=F64)), r"y = Vj\(3\) has 7 rows and b = Vj\(2\) has 8"),
    "batches": (
        ValueError,
        [torch.ones(2, 5, 3), torch.ones(4, 7, 3), torch.ones(7, 2), torch.ones(1)],
        r"y = Vj\(3\) has batch dimensions \(4,\), x = Vi\(3\) has 2 in dimension -1 of its own: they do not broadcast",
    ),
    "meta": (
        NotImplementedError,
        [x.to("meta") for x in tensors()],
        r"x = Vi\(3\) is on meta: expected a CPU, CUDA, ROCm or XPU tensor",
    ),
    "devices": (
        ValueError,
        changed(1, tensors()[1].to("meta")),
        r"y = Vj\(3\) is on meta and x = Vi\(3\) on cpu: expected one device",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(gaussian: Genred, case: str) -> None:
    kind, args, message = WRONG[case]
    with pytest.raises(kind, match=message):
        gaussian(*args)


def test_two_vi_of_different_length() -> None:
    with pytest.raises(
        ValueError, match=r"x = Vi\(3\) has 5 rows and a = Vi\(1\) has 6: variables indexed by i have one"
    ):
        Genred("x*a", ["x = Vi(3)", "a = Vi(1)"], axis=0)(torch.ones(5, 3), torch.ones(6, 1))


def test_unused_variables_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"unused = Vj\(2\): expected shape"):
        Genred("x", ["x = Vi(3)", "unused = Vj(2)"], axis=1)(torch.ones(5, 3), torch.ones(4, 3))


def test_a_wrong_call_after_a_right_one(gaussian: Genred) -> None:
    """Signatures that were checked once do not let others through."""
    args = tensors()
    gaussian(*args)
    with pytest.raises(ValueError, match="b = Vj"):
        gaussian(args[0], args[1], args[2][:6], args[3])
    with pytest.raises(TypeError, match="expected one dtype"):
        gaussian(args[0].float(), *args[1:])


def test_detached_gradients_are_served(gaussian: Genred) -> None:
    args = tensors()
    args[0].requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(gaussian(*args), expected(*args).detach())


# Options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,kind,message",
    [
        ({"backend": "cuda"}, ValueError, "backend='cuda': expected one of 'auto', 'CPU', 'GPU', 'GPU_1D'"),
        ({"backend": "cpu"}, ValueError, "backend='cpu': expected one of"),
        ({"backend": None}, ValueError, "backend=None: expected one of"),
        pytest.param({"backend": "GPU"}, RuntimeError, "backend='GPU': torch finds no GPU", marks=no_gpu),
        pytest.param(
            {"backend": "GPU_2D_host"}, RuntimeError, "backend='GPU_2D_host': torch finds no GPU", marks=no_gpu
        ),
        ({"device_id": -2}, ValueError, "device_id=-2: expected -1 or the number of a device"),
        ({"device_id": "cpu"}, ValueError, "device_id='cpu': expected"),
        ({"ranges": (torch.ones(1),) * 6}, TypeError, "ranges_i: expected integers, got torch.float32"),
        ({"ranges": (torch.ones(1),) * 3}, ValueError, r"ranges: expected the six tensors .* got 3 of them"),
        ({"ranges": torch.ones(6)}, ValueError, r"ranges: expected the six tensors .* got Tensor"),
        ({"ranges": ([1],) * 6}, TypeError, "ranges_i: expected an integer tensor, got list"),
        ({"mask": "i=j"}, ValueError, "mask='i=j': expected one of 'i<j', 'i<=j', 'i>j', 'i>=j', or a band"),
        ({"mask": torch.ones(5, 7)}, TypeError, "mask: expected a condition on i and j such as 'i<=j', got Tensor"),
        ({"neighbors": [1]}, TypeError, "neighbors: expected an integer tensor, got list"),
        ({"mask": "i<j", "neighbors": torch.ones(5, 2)}, ValueError, "mask and neighbors: expected at most one"),
    ],
)
def test_options_that_do_not_fit(
    gaussian: Genred, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        gaussian(*tensors(), **options)


@pytest.mark.parametrize(
    "options", [{"backend": "auto"}, {"backend": "CPU"}, {"device_id": -1}, {"device_id": 0}, {"ranges": None}]
)
def test_options_that_fit(gaussian: Genred, options: dict[str, Any]) -> None:
    assert torch.equal(gaussian(*tensors(), **options), gaussian(*tensors()))  # type: ignore[arg-type]


def test_unknown_options(gaussian: Genred) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        gaussian(*tensors(), back_end="auto")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "options,kind,message",
    [
        ({"dtype_acc": "float64", "use_double_acc": True}, ValueError, "dtype_acc or use_double_acc, not both"),
        (
            {"dtype_acc": "double"},
            ValueError,
            "dtype_acc='double': expected one of 'auto', 'float16', 'float32', 'float64'",
        ),
        (
            {"sum_scheme": "kahan"},
            ValueError,
            "sum_scheme='kahan': expected one of 'auto', 'direct_sum', 'block_sum', 'kahan_scheme'",
        ),
        ({"reduction_op": "Min", "dtype_acc": "float64"}, ValueError, "Min does not sum floats, expected 'auto'"),
        ({"reduction_op": "Min", "sum_scheme": "block_sum"}, ValueError, "Min does not sum floats"),
        ({"use_double_acc": "no"}, TypeError, "use_double_acc: expected a bool, got 'no'"),
        ({"use_double_acc": 1}, TypeError, "use_double_acc: expected a bool, got 1"),
        ({"opt_arg": 2.0}, TypeError, "opt_arg: expected an integer K, got 2.0"),
        ({"opt_arg": "3"}, TypeError, "opt_arg: expected an integer K, got '3'"),
    ],
)
def test_constructor_options_that_do_not_fit(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Genred(FORMULA, ALIASES, axis=1, **options)


def test_narrow_accumulators() -> None:
    narrow = Genred(FORMULA, ALIASES, axis=1, dtype_acc="float32")
    assert narrow(*tensors(torch.float32)).dtype == torch.float32  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="dtype_acc='float32': expected at least the precision of the data, float64"):
        narrow(*tensors())


@pytest.mark.parametrize("option", ["dtype", "cuda_type"])
def test_deprecated_options_warn(option: str) -> None:
    with pytest.warns(UserWarning, match=f"{option} is deprecated and ignored"):
        Genred(FORMULA, ALIASES, axis=1, **{option: "float64"})  # type: ignore[arg-type]


def test_keops_hints_are_accepted() -> None:
    Genred(FORMULA, ALIASES, axis=1, enable_chunks=False, rec_multVar_highdim=None, use_fast_math=False)


def test_k_of_any_integer_type() -> None:
    x, y = tensors()[:2]
    found = [Genred("SqDist(x,y)", ALIASES[:2], "KMin", axis=1, opt_arg=k)(x, y) for k in (3, numpy.int64(3))]
    assert torch.equal(*found)  # type: ignore[arg-type]


@pytest.mark.parametrize("op", ["Sum", "LogSumExp", "Max_SumShiftExp"])
def test_sum_schemes_agree(op: str) -> None:
    args = tensors(torch.float32, N=3000)
    found = [Genred("-SqDist(x,y)*p", ALIASES, op, axis=1, sum_scheme=scheme)(*args) for scheme in SCHEMES]
    exact = Genred("-SqDist(x,y)*p", ALIASES, op, axis=1)(*(x.double() for x in args))
    for each in found:
        torch.testing.assert_close(each.double(), exact, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]


SCHEMES = ("auto", "direct_sum", "block_sum", "kahan_scheme")


@pytest.mark.parametrize("number", [2, -1])
def test_the_axis_counts_no_batch_dimension(number: int) -> None:
    with pytest.raises(ValueError, match="Axis should be 0 or 1"):
        Genred(FORMULA, ALIASES, axis=number)


def test_aliases_are_not_touched() -> None:
    aliases = list(ALIASES)
    Genred(FORMULA, aliases, axis=1)(*tensors())
    assert aliases == ALIASES
    assert isinstance(Genred(FORMULA, tuple(aliases), axis=1)(*tensors()), Tensor)


# out= ---------------------------------------------------------------------------------------------------------------


def test_out_is_filled_and_returned(gaussian: Genred) -> None:
    out = torch.empty(5, 2, dtype=torch.float64)
    result = gaussian(*tensors(), out=out)
    assert result is out
    torch.testing.assert_close(out, expected(*tensors()))


def test_out_of_two_results() -> None:
    genred = Genred("SqDist(x,y)", ALIASES[:2], "Min_ArgMin", axis=1)
    x, y = tensors()[:2]
    out = (torch.empty(5, 1, dtype=torch.float64), torch.empty(5, 1, dtype=torch.int64))
    result = genred(x, y, out=out)
    assert all(a is b for a, b in zip(result, out, strict=True))
    assert torch.equal(out[1], torch.cdist(x, y).argmin(1, keepdim=True))
    with pytest.raises(ValueError, match="out: expected 2 tensors, got 1"):
        genred(x, y, out=out[0])
    with pytest.raises(ValueError, match=r"out: expected a contiguous torch.int64 tensor"):
        genred(x, y, out=(out[0], out[0]))


@pytest.mark.parametrize(
    "out,got",
    [
        (torch.empty(5, 3, dtype=F64), r"got torch.float64 \(5, 3\) on cpu$"),
        (torch.empty(7, 2, dtype=F64), r"got torch.float64 \(7, 2\) on cpu"),
        (torch.empty(1, 5, 2, dtype=F64), r"got torch.float64 \(1, 5, 2\) on cpu"),
        (torch.empty(5, 2), r"got torch.float32 \(5, 2\) on cpu"),
        (torch.empty(2, 5, dtype=F64).T, r"got torch.float64 \(5, 2\) on cpu, not contiguous"),
        (torch.empty(5, 2, dtype=F64, device="meta"), r"got torch.float64 \(5, 2\) on meta"),
    ],
)
def test_out_that_does_not_fit(gaussian: Genred, out: Tensor, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"out: expected a contiguous torch.float64 tensor of shape \(5, 2\) on cpu, {got}"
    ):
        gaussian(*tensors(), out=out)


@pytest.mark.parametrize("out", [[1.0], "out", 3])
def test_out_is_a_tensor(gaussian: Genred, out: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="out: expected"):
        gaussian(*tensors(), out=out)


def test_out_that_requires_gradients(gaussian: Genred) -> None:
    out = torch.empty(5, 2, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="out: expected a tensor that does not require gradients"):
        gaussian(*tensors(), out=out)
    with torch.no_grad():
        assert gaussian(*tensors(), out=out) is out


VIEWS = {
    "rows": (lambda memory: memory[20:35].reshape(5, 3), 15),
    "rows apart": (lambda memory: memory[20:50].reshape(5, 6)[:, :3], 27),
    "transposed": (lambda memory: memory[20:35].reshape(3, 5).T, 15),
}


@pytest.mark.parametrize("how", VIEWS)
def test_out_in_the_memory_of_an_argument(gaussian: Genred, how: str) -> None:
    """Right before an argument and right after it is free."""
    view, span = VIEWS[how]
    memory = torch.rand(80, dtype=F64)
    args = [view(memory), *tensors()[1:]]
    wanted = expected(*args)
    for start in (11, 20, 20 + span - 1):
        with pytest.raises(ValueError, match=r"out: expected memory of its own, got some of x = Vi\(3\)'s"):
            gaussian(*args, out=memory[start : start + 10].reshape(5, 2))
    for start in (10, 20 + span):
        torch.testing.assert_close(gaussian(*args, out=memory[start : start + 10].reshape(5, 2)), wanted)


# Layouts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula,aliases,shapes,axis,rows",
    [
        ("x*b", ["x = Vi(3)", "b = Vi(1)"], [(5, 3), (5, 1)], 1, 5),
        ("x*b", ["x = Vi(3)", "b = Vi(1)"], [(5, 3), (5, 1)], 0, 1),
        ("y*p", ["y = Vj(3)", "p = Pm(1)"], [(7, 3), (1,)], 1, 1),
        ("y*p", ["y = Vj(3)", "p = Pm(1)"], [(7, 3), (1,)], 0, 7),
        ("p*q", ["p = Pm(1)", "q = Pm(4)"], [(1,), (4,)], 1, 1),
        ("p*q", ["p = Pm(1)", "q = Pm(4)"], [(1,), (4,)], 0, 1),
        ("IntCst(3)", ["x = Vi(3)", "y = Vj(2)"], [(5, 3), (7, 2)], 1, 5),
    ],
)
def test_formulas_without_some_categories(
    formula: str, aliases: list[str], shapes: list[tuple[int, ...]], axis: int, rows: int
) -> None:
    """What no variable varies along has length one."""
    args = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    result = Genred(formula, aliases, axis=axis)(*args)
    if formula == "IntCst(3)":
        assert torch.equal(result, torch.full((5, 1), 21.0, dtype=torch.float64))  # type: ignore[arg-type]
        return
    product = torch.atleast_2d(args[0] * args[1])
    along = "i" if "Vi" in aliases[0] else "j"
    reduced = (axis == 0) == (along == "i") and "Pm" not in aliases[0]
    want = product.sum(0, keepdim=True) if reduced else product
    assert isinstance(result, Tensor) and result.shape[0] == rows
    torch.testing.assert_close(result, want)


def test_no_variable_at_all() -> None:
    with pytest.raises(ValueError, match="without variables has no dtype"):
        Genred("IntCst(5)", [])()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_shapes_of_a_parameter(gaussian: Genred, shape: tuple[int, ...]) -> None:
    args = tensors()
    torch.testing.assert_close(gaussian(*args[:3], args[3].reshape(shape)), expected(*args))


BATCHES = [
    ((2,), (2,), (2,), (2,)),
    ((2,), (1,), (), ()),
    ((), (3,), (1,), (3,)),
    ((2, 1), (3,), (2, 3), (1,)),
    ((), (), (), (4,)),
    ((), (), (), (1, 4)),
    ((3,), (1,), (), (1, 2, 1)),
    ((2, 1, 2), (1, 3, 1), (), (2,)),
    ((0,), (1,), (), ()),
]


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_batches_broadcast(batches: tuple[tuple[int, ...], ...], axis: int) -> None:
    args = [torch.rand((*batch, *x.shape)) for batch, x in zip(batches, tensors(), strict=True)]
    genred = Genred(
        "Exp(-p*SqDist(x,y))*a",
        ["x = Vi(3)", "y = Vj(3)", "a = Vj(2)" if axis else "a = Vi(2)", "p = Pm(1)"],
        axis=axis,
    )
    if axis == 0:
        args[2] = torch.rand((*batches[2], 5, 2))
    x, y, a, p = args
    result = genred(x, y, a, p)
    want = expected(x, y, a, p) if axis == 1 else expected(y, x, a, p)
    shape = torch.broadcast_shapes(*batches)
    assert isinstance(result, Tensor)
    torch.testing.assert_close(result, want.expand(*shape, *want.shape[-2:]), rtol=1e-5, atol=1e-6)


def test_batched_results_of_other_shapes() -> None:
    x, y = torch.rand(2, 1, 5, 3), torch.rand(3, 7, 3)
    distances = torch.cdist(x, y)
    found = Genred("SqDist(x,y)", ALIASES[:2], "ArgKMin", axis=1, opt_arg=3)(x, y)
    assert torch.equal(found, torch.sort(distances, dim=-1, stable=True).indices[..., :3])  # type: ignore[arg-type]
    values, rows = Genred("SqDist(x,y)", ALIASES[:2], "Min_ArgMin", axis=1)(x, y)
    assert values.shape == (2, 3, 5, 1) and torch.equal(rows[..., 0], distances.argmin(-1))
    assert Genred("x-y", ALIASES[:2], "KMin", axis=0, opt_arg=2)(x, y).shape == (2, 3, 7, 2, 3)  # type: ignore[union-attr]


STRIDES = {
    "rows apart": lambda x: torch.cat([x, x + 1], -1)[..., : x.shape[-1]],
    "every second row": lambda x: torch.stack([x, x + 1], -2).flatten(-3, -2)[..., ::2, :],
    "transposed": lambda x: x.mT.contiguous().mT,
    "components apart": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "expanded": lambda x: x[..., :1, :].expand(x.shape),
    "offset": lambda x: torch.cat([x, x], -2)[..., x.shape[-2] :, :],
}


@pytest.mark.parametrize("kind", STRIDES)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_strides(gaussian: Genred, kind: str, place: int, batch: tuple[int, ...]) -> None:
    args = tensors(batch=batch)
    args[place] = STRIDES[kind](args[place])
    before = [x.clone() for x in args]
    torch.testing.assert_close(gaussian(*args), expected(*args))
    assert all(torch.equal(x, y) for x, y in zip(args, before, strict=True))


@pytest.mark.parametrize("M,N", list(itertools.product([0, 1, 3], [0, 1, 1025])))
def test_sizes(gaussian: Genred, M: int, N: int) -> None:
    args = tensors(M=M, N=N)
    result = gaussian(*args)
    assert isinstance(result, Tensor) and result.shape == (M, 2)
    torch.testing.assert_close(result, expected(*args))


def test_many_shapes_are_planned_anew(gaussian: Genred) -> None:
    for M in range(1, 300):
        assert gaussian(*tensors(torch.float32, M=M)).shape == (M, 2)  # type: ignore[union-attr]
    assert len(gaussian._call._plans) <= 256


def test_results_are_new_each_time(gaussian: Genred) -> None:
    first, second = gaussian(*tensors()), gaussian(*tensors())
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    assert first.data_ptr() != second.data_ptr() and first.is_contiguous()
    assert torch.equal(first, second), "the same call gives the same bits"


# Sharing ------------------------------------------------------------------------------------------------------------


def test_eight_threads_share_one() -> None:
    genred = Genred("Exp(-SqDist(x,y)*p)*b+0", ALIASES, axis=1)
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            start.wait()
            for n in range(20):
                args = tensors(M=1 + (number + n) % 9, N=3 + n, dtype=[torch.float32, torch.float64][number % 2])
                torch.testing.assert_close(genred(*args), expected(*args), rtol=1e-4, atol=1e-4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_pickle(gaussian: Genred) -> None:
    gaussian(*tensors())
    again = pickle.loads(pickle.dumps(gaussian))
    assert repr(again) == repr(gaussian) and again.formula == gaussian.formula
    assert torch.equal(again(*tensors()), gaussian(*tensors()))


def _in_child(genred: Genred, queue: Any) -> None:
    queue.put(genred(*tensors(M=500, N=500)).tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_after_use(gaussian: Genred) -> None:
    """Threads are started per call and none is kept, so a child of fork can compute at once."""
    here = gaussian(*tensors(M=500, N=500))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(gaussian, queue))
    child.start()
    result = queue.get(timeout=60)
    child.join(10)
    assert child.exitcode == 0 and torch.equal(torch.tensor(result, dtype=torch.float64), here)  # type: ignore[arg-type]


def test_ten_thousand_calls_keep_no_memory(gaussian: Genred) -> None:
    args = tensors(torch.float32, M=3, N=3)
    for _ in range(100):
        gaussian(*args)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10_000):
            gaussian(*args)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000, f"{grown} bytes"


def test_resident_memory_stays(gaussian: Genred) -> None:
    """What C allocates is freed as well: several threads, blocks of j, splits."""
    args = tensors(torch.float32, M=3, N=20_000)
    for _ in range(50):
        gaussian(*args)
    before = _resident()
    for _ in range(1000):
        gaussian(*args)
    assert _resident() - before < 8 << 20


def _resident() -> int:
    import resource  # not on every system

    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        pytest.skip("no /proc")


def test_short_calls_do_without_products():
    """Starting the kernels that they need would take longer; the rule counts components too."""
    x, y = Var(0, 64, Category.I, "x"), Var(1, 64, Category.J, "y")
    assert _is_short([x, y], Layout((), 1000, 1000))
    assert not _is_short([x, y], Layout((), 10_000, 10_000))
    assert not _is_short([x, y], Layout((100,), 1000, 1000))
