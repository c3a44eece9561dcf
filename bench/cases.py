"""The named cases: what is computed, on which inputs, and what it amounts to in dense torch operations.

A case is data. The benchmark times it, the tests run it small, and a GPU module may count its instructions. TABLE names
the cases of the README's table, FAMILIES those that differ in nothing but the dimension.

    case = CASES["gaussian_d3"]
    inputs = case.inputs(M=100, N=200)               # seeded torch tensors, in the formula's order
    kernel = Genred(**case.genred_arguments())       # of tritonkeops or pykeops, torch or numpy
    torch.testing.assert_close(kernel(*inputs), case.dense(*inputs))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from tritonkeops.torch.cluster import from_matrix

SUPPORT = 64  # rows of a cotangent that are not zero
BLOCK = 200  # rows of a block
Category = Literal["Vi", "Vj", "Pm"]


@dataclass(frozen=True)
class Variable:
    """A variable of a formula; its components are drawn from a centred normal law of this deviation."""

    name: str
    category: Category
    dim: int
    deviation: float = 1.0

    @property
    def alias(self) -> str:
        return f"{self.name}={self.category}({self.dim})"

    def shape(self, M: int, N: int) -> tuple[int, ...]:
        return {"Vi": (M, self.dim), "Vj": (N, self.dim), "Pm": (self.dim,)}[self.category]


@dataclass(frozen=True)
class Case:
    """One computation.

    `dense` takes the variables in order and gives the result through M x N matrices: in float64 it is the
    reference, and applied to a few rows of the Vi at a time it is the peer called torch.

    With `gradient_in`, the result has the gradient of the value in that variable beside it, as more columns;
    the last variable is then what the gradient is applied to. With `gradients`, autograd gives the gradients in those
    variables; the result is one column, the value and then all of them. The last variable, which the formula does not
    have, is the cotangent: zero but for some rows, so that these rows are enough to know all gradients.

    With `blocks`, only that fraction of the blocks of BLOCK rows i by BLOCK rows j is summed (`ranges`).
    """

    name: str
    formula: str
    variables: tuple[Variable, ...]
    dense: Callable[..., Tensor]
    reduction_op: str = "Sum"
    axis: int = 1
    opt_arg: int | None = None
    formula2: str | None = None
    gradient_in: str | None = None
    gradients: tuple[str, ...] = ()
    blocks: float | None = None
    M: int = 10_000
    N: int = 10_000
    dtype: torch.dtype = torch.float32
    interface: Literal["torch", "numpy"] = "torch"
    measure: Literal["throughput", "call", "first call"] = "throughput"
    peers: tuple[str, ...] = ("pykeops", "torch")

    @property
    def aliases(self) -> list[str]:
        return [variable.alias for variable in self.arguments]

    @property
    def arguments(self) -> tuple[Variable, ...]:
        """The variables of the formula."""
        return self.variables[:-1] if self.gradients else self.variables

    @property
    def dims(self) -> dict[str, int]:
        return {variable.name: variable.dim for variable in self.variables}

    @property
    def one_kernel(self) -> bool:
        """Whether it is the work of one kernel over all pairs, whose instructions can be counted."""
        return self.measure == "throughput" and not self.gradients and self.blocks is None

    @property
    def gives_indices(self) -> bool:
        return "Arg" in self.reduction_op

    def genred_arguments(self) -> dict[str, Any]:
        """What to construct a Genred with, for the value."""
        optional = {"opt_arg": self.opt_arg, "formula2": self.formula2}
        given = {name: value for name, value in optional.items() if value is not None}
        return {
            "formula": self.formula,
            "aliases": self.aliases,
            "reduction_op": self.reduction_op,
            "axis": self.axis,
            **given,
        }

    def gradient_arguments(self) -> dict[str, Any]:
        """What to construct a Genred with, for the gradient alone; it takes the same inputs."""
        assert self.gradient_in is not None
        applied_to = self.variables[-1].name
        formula = f"Grad({self.formula},{self.gradient_in},{applied_to})"
        return {**self.genred_arguments(), "formula": formula}

    def inputs(self, M: int | None = None, N: int | None = None, seed: int = 0) -> list[Tensor]:
        """Random inputs, contiguous, the same for the same sizes and seed whatever the dtype."""
        generator = torch.Generator().manual_seed(seed)
        sizes = self.M if M is None else M, self.N if N is None else N

        def draw(variable: Variable) -> Tensor:
            normal = torch.randn(variable.shape(*sizes), generator=generator, dtype=torch.float64)
            return (normal * variable.deviation).to(self.dtype)

        drawn = [draw(variable) for variable in self.variables]
        if self.gradients:
            drawn[-1][SUPPORT:] = 0
        return drawn

    def kept(self) -> Tensor:
        """Which blocks are summed, a matrix of truth values."""
        assert self.blocks is not None
        shape = (-(-self.M // BLOCK), -(-self.N // BLOCK))
        order = torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(2))
        return (order < self.blocks * len(order)).reshape(shape)

    def ranges(self) -> tuple[Tensor, ...]:
        """The blocks as KeOps takes them."""
        return from_matrix(spans(self.M), spans(self.N), self.kept())

    def with_gradients(self, value: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
        """A differentiable value and its gradients, one column."""
        leaves = [
            x.detach().requires_grad_(v.name in self.gradients) for v, x in zip(self.arguments, inputs, strict=False)
        ]
        result = value(*leaves)
        wanted = [x for x in leaves if x.requires_grad]
        found = torch.autograd.grad(result, wanted, inputs[-1])
        return torch.cat([each.detach().reshape(-1, 1) for each in (result, *found)])

    def rows(self, inputs: list[Tensor], rows: Tensor | slice) -> list[Tensor]:
        """The inputs that these rows of the result depend on."""
        pairs = zip(self.variables, inputs, strict=True)
        return [tensor[rows] if v.category == "Vi" else tensor for v, tensor in pairs]

    def error(self, result: Tensor, inputs: list[Tensor], sample: int = 64) -> float:
        """The largest deviation of a result from float64, over some rows, relative to the largest entry.

        Indices count as right when what they point at is as small, so ties do not matter.
        """
        if self.gradients:
            return self._gradient_error(result, inputs)
        chosen = torch.randperm(len(result), generator=torch.Generator().manual_seed(1))[:sample]
        some = [tensor.double() for tensor in self.rows(inputs, chosen)]
        found, expected = result[chosen], self.dense(*some)
        if self.gives_indices:
            matrix = direct_sqdist(some[0], some[1])
            found, expected = matrix.gather(1, found.view(expected.shape)), matrix.gather(1, expected)
        if self.blocks is not None:
            kept = self.kept()[chosen // BLOCK].repeat_interleave(BLOCK, 1)[:, : self.N]
            expected = (direct_sqdist(some[0], some[1]).neg().exp() * kept) @ some[2]
        return ((found - expected).abs().max() / expected.abs().max()).item()

    def _gradient_error(self, result: Tensor, inputs: list[Tensor]) -> float:
        """The largest relative deviation of the value's first rows, and of any gradient, from float64."""
        few = slice(SUPPORT)
        exact = self.with_gradients(self.dense, [x.double() for x in self.rows(inputs, few)])
        sizes = [v for v in self.arguments if v.name in self.gradients]
        value = Variable("value", "Vi", inputs[-1].shape[1])
        worst, at, exact_at = 0.0, 0, 0
        for v in (value, *sizes):
            length, some = (
                math.prod(v.shape(rows, len(inputs[1]))) for rows in (len(inputs[0]), min(SUPPORT, len(inputs[0])))
            )
            found, expected = result[at : at + some], exact[exact_at : exact_at + some]
            worst = max(worst, ((found - expected).abs().max() / expected.abs().max()).item())
            at, exact_at = at + length, exact_at + some
        return worst


# --- the computations, dense ----------------------------------------------------------------------------


def sqdist(x: Tensor, y: Tensor) -> Tensor:
    """|x_i|^2 - 2 <x_i, y_j> + |y_j|^2 as one product of matrices: the fastest way in torch."""
    left = torch.cat([-2 * x, (x * x).sum(1, keepdim=True), torch.ones_like(x[:, :1])], 1)
    right = torch.cat([y, torch.ones_like(y[:, :1]), (y * y).sum(1, keepdim=True)], 1)
    return left @ right.T


def direct_sqdist(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 from the differences, none of them stored: no cancellation."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** 2


def spans(length: int) -> Tensor:
    """The first row and the end of each block."""
    first = torch.arange(0, length, BLOCK)
    return torch.stack([first, (first + BLOCK).clamp(max=length)], 1)


def gaussian(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    return sqdist(x, y).neg().exp() @ b


def gaussian_gradient(x: Tensor, y: Tensor, b: Tensor, e: Tensor) -> Tensor:
    """K b and its gradient in x applied to e: -2 e_i sum_j K_ij b_j (x_i - y_j)."""
    matrix = sqdist(x, y).neg_().exp_()
    value = matrix @ b
    return torch.cat([value, -2 * e * (x * value - matrix @ (y * b))], 1)


def logsumexp(x: Tensor, y: Tensor) -> Tensor:
    return sqdist(x, y).neg_().logsumexp(1, keepdim=True)


def sinkhorn_step(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    return (b.T - sqdist(x, y)).logsumexp(1, keepdim=True)


def softmax(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    return sqdist(x, y).neg_().softmax(1) @ b


def attention(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    return (x @ y.T).softmax(1) @ b


def nearest(x: Tensor, y: Tensor) -> Tensor:
    return sqdist(x, y).argmin(1, keepdim=True)


def k_nearest(x: Tensor, y: Tensor, K: int) -> Tensor:
    return sqdist(x, y).topk(min(K, len(y)), largest=False).indices


# --- the cases ------------------------------------------------------------------------------------------


def clouds(dim: int) -> tuple[Variable, Variable]:
    """Points x_i and y_j whose mean squared distance is 1 in any dimension."""
    deviation = (2 * dim) ** -0.5
    return Variable("x", "Vi", dim, deviation), Variable("y", "Vj", dim, deviation)


def directions(dim: int) -> tuple[Variable, Variable]:
    """Vectors x_i and y_j whose inner products have deviation 1 in any dimension: a softmax of them is not one-hot."""
    deviation = dim**-0.25
    return Variable("x", "Vi", dim, deviation), Variable("y", "Vj", dim, deviation)


def square(dim: int, most: int = 10_000) -> dict[str, int]:
    """M and N: fewer points in higher dimensions, so that the slowest peer takes about a second."""
    tenths = 10 if dim <= 16 else 4 if dim <= 200 else 2 if dim <= 512 else 1
    rows = most * tenths // 10
    return {"M": rows, "N": rows}


WEIGHT = Variable("b", "Vj", 1)


def gaussian_case(name: str, dim: int, weight: Variable = WEIGHT, **options: Any) -> Case:
    options = {"peers": ("pykeops", "torch", "sklearn"), **square(dim), **options}
    return Case(name, "Exp(-SqDist(x,y))*b", (*clouds(dim), weight), gaussian, **options)


def gaussian_gradient_case(name: str, dim: int) -> Case:
    variables = (*clouds(dim), WEIGHT, Variable("e", "Vi", 1))
    return Case(name, "Exp(-SqDist(x,y))*b", variables, gaussian_gradient, gradient_in="x", **square(dim))


def logsumexp_case(name: str, dim: int) -> Case:
    return Case(name, "-SqDist(x,y)", clouds(dim), logsumexp, reduction_op="LogSumExp", **square(dim))


def neighbours_case(name: str, dim: int, K: int, **options: Any) -> Case:
    reduction = {"opt_arg": K, "reduction_op": "ArgKMin"} if K > 1 else {"reduction_op": "ArgMin"}
    dense = partial(k_nearest, K=K) if K > 1 else nearest
    options = {"peers": ("pykeops", "torch", "faiss", "sklearn"), **reduction, **square(dim), **options}
    return Case(name, "SqDist(x,y)", clouds(dim), dense, **options)


def softmax_case(name: str, formula: str, points: tuple[Variable, Variable], dense: Any, **options: Any) -> Case:
    """The softmax average of vectors b_j with as many components as x_i and y_j."""
    variables = (*points, Variable("b", "Vj", points[0].dim))
    return Case(name, formula, variables, dense, reduction_op="SumSoftMaxWeight", formula2="b", **options)


def attention_case(name: str, dim: int, **options: Any) -> Case:
    options = {"peers": ("pykeops", "torch", "sdpa"), **square(dim, most=5000), **options}
    return softmax_case(name, "(x|y)", directions(dim), attention, **options)


def differentiated(case: Case, peers: tuple[str, ...] = ("pykeops", "torch")) -> Case:
    """The case with its gradients in all variables."""
    names = tuple(variable.name for variable in case.variables)
    variables = (*case.variables, Variable("e", "Vi", 1))
    return replace(case, variables=variables, gradients=names, peers=peers)


DIMS = (1, 3, 10, 16, 64, 128, 512, 1024)
NEIGHBOUR_DIMS = (3, 64, 128, 784)
ATTENTION_DIMS = (16, 64, 128, 512)


def neighbours_family(prefix: str, K: int) -> list[Case]:
    return [neighbours_case(f"{prefix}_d{dim}", dim, K) for dim in NEIGHBOUR_DIMS]


_FAMILIES = {
    "Sum of Exp(-SqDist(x,y))*b": [gaussian_case(f"gaussian_d{dim}", dim) for dim in DIMS],
    "the same and its gradient in x": [gaussian_gradient_case(f"gaussian_grad_d{dim}", dim) for dim in DIMS],
    "LogSumExp of -SqDist(x,y)": [logsumexp_case(f"logsumexp_d{dim}", dim) for dim in DIMS],
    "ArgKMin (K = 10) of SqDist(x,y)": neighbours_family("argkmin10", 10),
    "SumSoftMaxWeight of (x|y) and b of dim D": [attention_case(f"softmax_d{dim}", dim) for dim in ATTENTION_DIMS],
}

_OTHERS = [
    *neighbours_family("argmin", 1),
    *neighbours_family("argkmin50", 50),
    differentiated(gaussian_case("gaussian_all_grads_d3", 3)),
    differentiated(gaussian_case("gaussian_all_grads_d64", 64)),
    differentiated(Case("sinkhorn_d3", "b-SqDist(x,y)", (*clouds(3), WEIGHT), sinkhorn_step, reduction_op="LogSumExp")),
    gaussian_case("gaussian_blocks_d3", 3, blocks=0.1, peers=("pykeops",)),
    softmax_case("softmax_d3", "-SqDist(x,y)", clouds(3), softmax),
    gaussian_case("gaussian_f64_d3", 3, dtype=torch.float64),
    neighbours_case("argkmin10_d3_n100k", 3, K=10, M=4000, N=100_000),
    gaussian_case("overhead_m10", 3, M=10, N=10, measure="call", peers=("pykeops",)),
    differentiated(gaussian_case("overhead_m10_grads", 3, M=10, N=10, measure="call"), peers=("pykeops",)),
    gaussian_case("overhead_m10_numpy", 3, M=10, N=10, measure="call", peers=("pykeops",), interface="numpy"),
    gaussian_case("compile_first_call", 3, M=100, N=100, measure="first call", peers=("pykeops",)),
    gaussian_case("gaussian_d200", 200),
    gaussian_case("gaussian_rhs64_d3", 3, Variable("b", "Vj", 64), M=4000, N=4000),
    gaussian_case("gaussian_rhs64_d64", 64, Variable("b", "Vj", 64)),
    neighbours_case("argmin_d128_bf16", 128, K=1, dtype=torch.bfloat16, peers=("torch",)),
    attention_case("softmax_d64_bf16", 64, dtype=torch.bfloat16, peers=("torch", "sdpa")),
]

CASES: dict[str, Case] = {case.name: case for case in chain(*_FAMILIES.values(), _OTHERS)}

TABLE = (
    "gaussian_d3",
    "logsumexp_d3",
    "argkmin10_d3",
    "gaussian_d64",
    "argkmin10_d64",
    "gaussian_grad_d3",
    "gaussian_all_grads_d3",
    "gaussian_all_grads_d64",
    "sinkhorn_d3",
    "gaussian_blocks_d3",
    "gaussian_d10",
    "argmin_d3",
    "softmax_d3",
    "gaussian_f64_d3",
    "argkmin10_d128",
    "argkmin10_d3_n100k",
    "overhead_m10",
    "overhead_m10_grads",
    "overhead_m10_numpy",
    "compile_first_call",
)

FAMILIES = {title: tuple(case.name for case in family) for title, family in _FAMILIES.items()}

PLOTTED = tuple(chain(*FAMILIES.values()))
