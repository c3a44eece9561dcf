"""Side by side with PyKeOps 2.3, where it is installed and LANGUAGE.md finds it right.

PyKeOps compiles each formula for seconds: five of them, in one process, kept in its own cache between runs.
Deselect with -m "not slow".
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from tritonkeops.numpy import Genred

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("pykeops") is None, reason="pykeops is not installed"),
]
CASES = {
    "gaussian": ("Exp(-p*SqDist(x,y))*b", "Sum", 1, None, None),
    "neighbours": ("SqDist(x,y)", "ArgKMin", 1, 3, None),
    "closest": ("SqDist(x,y)", "Min_ArgMin", 0, None, None),
    "attention": ("(x|y)*p", "SumSoftMaxWeight", 1, None, "b"),
    "gradient": ("Grad(Exp(-p*SqDist(x,y))*Sum(b),y,Elem(x,0))", "Sum", 0, None, None),
}
ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "p = Pm(1)"]
SCRIPT = """
import sys, warnings, numpy as np
warnings.simplefilter("ignore")
from pykeops.numpy import Genred
rng = np.random.default_rng(0)
args = [rng.random(shape) for shape in ((40, 3), (50, 3), (50, 2), (1,))]
results = {}
for name, (formula, op, axis, k, weight) in CASES.items():
    options = ({} if k is None else {"opt_arg": k}) | ({} if weight is None else {"formula2": weight})
    result = Genred(formula, list(ALIASES), reduction_op=op, axis=axis, **options)(*args, backend="CPU")
    for n, each in enumerate(result if isinstance(result, tuple) else (result,)):
        results[f"{name} {n}"] = each
np.savez(sys.argv[1], **results)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """PyKeOps' results, from a process of its own: importing it prints, starts a compiler, and keeps state."""
    path = tmp_path_factory.mktemp("pykeops") / "results.npz"
    code = f"CASES, ALIASES = {CASES!r}, {ALIASES!r}\n{SCRIPT}"
    env = {**os.environ, "PYKEOPS_VERBOSE": "0", "KEOPS_VERBOSE": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pykeops fails here: {done.stderr[-300:]}")
    return dict(np.load(path))


@pytest.mark.parametrize("name", CASES)
def test_the_same_as_pykeops(name: str, theirs: dict[str, np.ndarray]) -> None:
    formula, op, axis, k, weight = CASES[name]
    rng = np.random.default_rng(0)
    args = [rng.random(shape) for shape in ((40, 3), (50, 3), (50, 2), (1,))]
    ours = Genred(formula, ALIASES, op, axis, opt_arg=k, formula2=weight)(*args)
    ours = ours if isinstance(ours, tuple) else (ours,)
    expected = [value for key, value in theirs.items() if key.split()[0] == name]
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-6)
