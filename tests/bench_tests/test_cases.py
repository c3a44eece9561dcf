"""The named cases mean what their dense forms say, and whoever computes them agrees."""

import pytest
import torch

from bench import peers
from bench.__main__ import matching
from bench.cases import CASES, FAMILIES, PLOTTED, TABLE, direct_sqdist
from bench.compare import TOLERANCE
from bench.peers import OURS, PEERS, installed
from tests.conftest import program_of, run_program

M, N = 37, 70  # more columns than the 50 neighbours of a case


def small(case):
    """A case's inputs, few of them, in float64: the formula is checked, not the precision."""
    return [tensor.double() for tensor in case.inputs(M, N)]


def reference(arguments, inputs):
    k = arguments.pop("opt_arg", 0)
    return run_program(program_of(**arguments, k=k), inputs, backend="torch", dtype_acc="float64")[-1]


# The reference interprets the formula: all cases, in any dimension, take a second, while a kernel of each would take
# minutes to build.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.blocks is None])
def test_the_formula_is_the_dense_computation(name):
    case = CASES[name]
    inputs = small(case)
    found = reference(case.genred_arguments(), inputs[: len(case.arguments)])
    if case.gradient_in:
        found = torch.cat([found, reference(case.gradient_arguments(), inputs)], 1)
    expected = case.dense(*inputs[: len(case.arguments)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# One of each family that the plot shows, and one of each other kind: few, for ours builds a kernel for each. PyKeOps
# takes ten seconds for one, and has tests of its own.
KINDS = ["gaussian_d3", "logsumexp_d3", "gaussian_grad_d3", "argkmin10_d3", "softmax_d16"]
KINDS += ["gaussian_rhs64_d3", "argmin_d784", "argkmin50_d3", "gaussian_all_grads_d3"]
PLAYERS = [(name, peer) for name in KINDS for peer in (OURS, *CASES[name].peers) if peer != "pykeops"]


@pytest.mark.parametrize(("name", "peer"), PLAYERS)
def test_peers_agree_with_the_dense_computation(name, peer, monkeypatch):
    if not installed(peer):
        pytest.skip(f"{peer} is not installed")
    monkeypatch.setattr(peers, "CHUNK", 1 << 10)  # several blocks of rows
    case = CASES[name]
    inputs = case.inputs(M, N)
    assert case.error(PEERS[peer](case, inputs)(), inputs) <= TOLERANCE[case.dtype]


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_direct_distances(dim):
    x, y = torch.randn(5, dim, dtype=torch.float64), torch.randn(4, dim, dtype=torch.float64)
    y[0] = x[0]
    torch.testing.assert_close(direct_sqdist(x, y), ((x[:, None] - y) ** 2).sum(2), rtol=1e-14, atol=0)


def test_the_table_and_the_families_name_cases_of_the_cpu():
    assert set(TABLE) | set(PLOTTED) <= set(CASES)
    assert all(CASES[name].dtype != torch.bfloat16 for name in (*TABLE, *PLOTTED))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_differs_in_the_dimension_alone(family):
    cases = [CASES[name] for name in family]
    dims = [case.dims["x"] for case in cases]
    assert dims == sorted(set(dims))
    assert [case.name.rpartition("_d")[2] for case in cases] == [str(dim) for dim in dims]
    assert len({(case.formula, case.reduction_op, case.opt_arg, case.peers) for case in cases}) == 1
    assert all(case.M == case.N >= 1000 for case in cases)


def test_cases_are_chosen_by_names_and_patterns():
    assert matching("argmin_d3,softmax_d1*", CASES) == ["argmin_d3", "softmax_d16", "softmax_d128"]
    with pytest.raises(SystemExit, match="unknown cases: nothing_\\*"):
        matching("argmin_d3,nothing_*", CASES)
