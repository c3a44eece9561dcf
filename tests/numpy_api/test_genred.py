"""Genred on NumPy arrays: in place, without copies, whatever their memory looks like."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import tritonkeops.numpy as api
from tritonkeops.numpy import Genred
from tritonkeops.runtime.reducer import Where

ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "p = Pm(1)"]


def arrays(dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random(shape).astype(dtype) for shape in ((5, 3), (7, 3), (7, 2), (1,))]


def expected(x: np.ndarray, y: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.exp(-p * ((x[:, None] - y[None]) ** 2).sum(-1)) @ b


@pytest.fixture(scope="module")
def gaussian() -> Genred:
    return Genred("Exp(-p*SqDist(x,y))*b", ALIASES, axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_types_and_shapes(gaussian: Genred, dtype: Any) -> None:
    result = gaussian(*arrays(dtype))
    assert isinstance(result, np.ndarray) and (result.dtype, result.shape) == (dtype, (5, 2))
    np.testing.assert_allclose(result, expected(*arrays()), rtol=1e-5)


def test_indices_and_pairs() -> None:
    x, y = arrays()[:2]
    distances = ((x[:, None] - y[None]) ** 2).sum(-1)
    values, rows = Genred("SqDist(x,y)", ALIASES[:2], "Min_ArgMin", axis=1)(x, y)
    assert rows.dtype == np.int64 and np.array_equal(rows[:, 0], distances.argmin(1))
    np.testing.assert_allclose(values[:, 0], distances.min(1))
    nearest = Genred("SqDist(x,y)", ALIASES[:2], "ArgKMin", axis=1, opt_arg=3)(x, y)
    assert isinstance(nearest, np.ndarray) and np.array_equal(nearest, distances.argsort(1)[:, :3])


def seen(gaussian: Genred, monkeypatch: pytest.MonkeyPatch, args: list[np.ndarray]) -> list[torch.Tensor]:
    """The tensors that reach the kernel's launch."""
    caught: list[torch.Tensor] = []
    reducer = gaussian._reducer(Where())
    inner = reducer.launch

    def spy(tensors: Any, pattern: Any = (), out: Any = None) -> Any:
        caught.extend(tensors)
        return inner(tensors, pattern, out)

    monkeypatch.setattr(reducer, "launch", spy)
    gaussian(*args)
    return caught


@pytest.mark.parametrize("kind", ["plain", "rows apart", "read-only", "a slice", "0-D parameter"])
def test_arrays_are_used_in_place(gaussian: Genred, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    args = arrays()
    if kind == "rows apart":
        args[0] = np.hstack([args[0], args[0]])[:, :3]
    elif kind == "read-only":
        for array in args:
            array.flags.writeable = False
    elif kind == "a slice":
        args[1] = np.vstack([args[1], args[1]])[7:]
    elif kind == "0-D parameter":
        args[3] = args[3].reshape(())
    for tensor, array in zip(seen(gaussian, monkeypatch, args), args, strict=True):
        assert tensor.data_ptr() == array.ctypes.data
        assert [n * array.itemsize for n in tensor.stride()] == list(array.strides)


def test_the_result_owns_its_memory(gaussian: Genred) -> None:
    first = gaussian(*arrays())
    kept = first.copy()  # type: ignore[union-attr]
    gaussian(*(2 * x for x in arrays()))
    assert np.array_equal(first, kept) and first.flags.writeable  # type: ignore[arg-type, union-attr]


UNUSUAL = {
    "reversed rows": lambda x: x[::-1],
    "reversed components": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "every second row": lambda x: np.repeat(x, 2, 0)[::2],
    "Fortran order": np.asfortranarray,
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned record": lambda x: _record(x),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}


def _record(x: np.ndarray) -> np.ndarray:
    """A field of records with a byte before it: strides that are no multiple of the item."""
    records = np.zeros(x.shape[0], dtype=[("flag", "u1"), ("value", x.dtype, x.shape[1:])])
    records["value"] = x
    return records["value"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unusual_memory(gaussian: Genred, kind: str, place: int, dtype: Any) -> None:
    args = arrays(dtype)
    args[place] = UNUSUAL[kind](args[place])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(gaussian(*args), expected(*args), rtol=1e-5)  # type: ignore[arg-type]


def test_read_only_arrays_give_no_warning(gaussian: Genred) -> None:
    args = arrays()
    for array in args:
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(gaussian(*args), expected(*args))  # type: ignore[arg-type]


@pytest.mark.parametrize("value,kind,message", [
    ([[1.0, 2.0, 3.0]], TypeError, r"x = Vi\(3\): expected an array, got list"),
    (torch.ones(5, 3), TypeError, r"x = Vi\(3\): expected an array, got Tensor"),
    (np.ones((5, 3), dtype=int), TypeError, r"x = Vi\(3\): expected float32 or float64, got int64"),
    (np.ones((5, 3), dtype=complex), TypeError, r"x = Vi\(3\): expected float32 or float64, got complex128"),
    (np.ones((5, 3), dtype=object), TypeError, r"x = Vi\(3\): expected float32 or float64, got object"),
    (np.ones((5, 3), dtype=np.longdouble), TypeError, r"x = Vi\(3\): expected .*, got (float128|longdouble)"),
    (
        np.ones((5, 3), dtype=np.float16),
        NotImplementedError,
        r"x = Vi\(3\): expected float32 or float64 on the CPU, got torch.float16",
    ),
    (np.ones((5, 3), dtype=np.float32), TypeError, "expected one dtype"),
    (np.ones((5, 4)), ValueError, r"x = Vi\(3\): expected shape \(..., M, 3\), got \(5, 4\)"),
    (np.ones(3), ValueError, r"x = Vi\(3\): expected shape"),
])  # fmt: skip
def test_what_does_not_fit_is_named(gaussian: Genred, value: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        gaussian(value, *arrays()[1:])


def test_wrong_numbers_of_arrays(gaussian: Genred) -> None:
    for args in (arrays()[:2], [*arrays(), arrays()[0]]):
        with pytest.raises(ValueError, match=f"expected 4 .*, got {len(args)}"):
            gaussian(*args)


def test_out(gaussian: Genred) -> None:
    out = np.empty((5, 2))
    assert gaussian(*arrays(), out=out) is out
    np.testing.assert_allclose(out, expected(*arrays()))
    pair = (np.empty((5, 1)), np.empty((5, 1), dtype=np.int64))
    assert Genred("SqDist(x,y)", ALIASES[:2], "Min_ArgMin", axis=1)(*arrays()[:2], out=pair) is pair


@pytest.mark.parametrize("out", [np.empty((2, 5)).T, np.empty((5, 2), dtype=np.float32), np.empty((5, 3)),
                                 np.empty((5, 2), dtype=np.int64)])  # fmt: skip
def test_out_that_does_not_fit(gaussian: Genred, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out: expected a contiguous "):
        gaussian(*arrays(), out=out)


@pytest.mark.parametrize("spoil,message", [
    (lambda x: x[::-1], "out"),
    (lambda x: np.lib.stride_tricks.as_strided(x, writeable=False), "out"),
    (lambda x: x.tolist(), "out"),
])  # fmt: skip
def test_out_that_cannot_be_written(gaussian: Genred, spoil: Any, message: str) -> None:
    out = spoil(np.empty((5, 2)))
    with pytest.raises((ValueError, TypeError), match=message):
        gaussian(*arrays(), out=out)


def test_options_are_checked(gaussian: Genred) -> None:
    with pytest.raises(ValueError, match="backend='cuda'"):
        gaussian(*arrays(), backend="cuda")
    with pytest.raises(TypeError, match="ranges: expected integer arrays, got float64"):
        gaussian(*arrays(), ranges=(np.ones(1),) * 6)
    assert np.array_equal(gaussian(*arrays(), backend="CPU"), gaussian(*arrays()))  # type: ignore[arg-type]


def test_formulas_without_variables_of_a_category() -> None:
    x, p = arrays()[0], np.full(1, 2.0)
    np.testing.assert_allclose(Genred("x*p", ["x = Vi(3)", "p = Pm(1)"], axis=0)(x, p), 2 * x.sum(0, keepdims=True))
    np.testing.assert_allclose(Genred("p*p", ["p = Pm(1)"], axis=0)(p), [[4.0]])


def test_batches() -> None:
    x, y = np.random.default_rng(0).random((2, 1, 5, 3)), np.random.default_rng(1).random((4, 7, 3))
    result = Genred("SqDist(x,y)", ALIASES[:2], axis=1)(x, y)
    np.testing.assert_allclose(result, ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum((-1, -2))[..., None])


def test_the_module_exports_what_it_says() -> None:
    assert api.__all__ == ["Genred"] and all(hasattr(api, name) for name in api.__all__)
