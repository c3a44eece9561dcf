"""Who computes a case: tritonkeops and the others, each behind one function.

A peer turns a case and its inputs into a function that computes the result, (rows, columns), when called.
What depends on the formula alone (constructing a Genred) is done before; what depends on the inputs (building
an index) is part of the computation. Peers are imported when first used: each but torch may be missing.
"""

import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases import Case

Computation = Callable[[], Tensor]
OURS = "tritonkeops"
CHUNK = 2 << 20  # bytes of a dense block of rows: what is fastest in torch, about a cache


def map_reduce(library: str, case: Case, inputs: list[Tensor]) -> Computation:
    """A Genred of tritonkeops or of pykeops: they share the interface."""
    Genred = importlib.import_module(f"{library}.{case.interface}").Genred
    kernel = Genred(**case.genred_arguments())
    if case.interface == "numpy":
        arrays = [tensor.numpy() for tensor in inputs]
        return lambda: torch.from_numpy(kernel(*arrays))
    options = {} if case.blocks is None else {"ranges": case.ranges()}
    if case.gradients:
        return lambda: case.with_gradients(kernel, inputs)
    return lambda: kernel(*inputs, **options)


def tritonkeops(case: Case, inputs: list[Tensor]) -> Computation:
    value = map_reduce(OURS, case, inputs)
    if case.gradient_in is None:
        return value
    Genred = importlib.import_module(f"{OURS}.torch").Genred
    gradient = Genred(**case.gradient_arguments())
    return lambda: torch.cat([value(), gradient(*inputs)], 1)


def pykeops(case: Case, inputs: list[Tensor]) -> Computation:
    """PyKeOps; it differentiates through torch's autograd, as its users do."""
    if case.gradient_in is None:
        return map_reduce("pykeops", case, inputs)
    position = [variable.name for variable in case.variables].index(case.gradient_in)
    leaf = inputs[position].clone().requires_grad_()
    value = map_reduce("pykeops", case, [*inputs[:position], leaf, *inputs[position + 1 :]])

    def value_and_gradient() -> Tensor:
        result = value()
        (gradient,) = torch.autograd.grad(result, leaf, inputs[-1])
        return torch.cat([result.detach(), gradient], 1)

    return value_and_gradient


def dense_torch(case: Case, inputs: list[Tensor]) -> Computation:
    """Dense operations on as many rows at a time as a cache holds."""
    by_row = next(t for v, t in zip(case.variables, inputs, strict=True) if v.category == "Vi")
    by_column = next(t for v, t in zip(case.variables, inputs, strict=True) if v.category == "Vj")
    # Long vectors: as many rows as components at least, since each block reads all the columns' vectors.
    step = max(by_column.shape[1], CHUNK // (len(by_column) * by_column.element_size()))
    chunks = [slice(first, first + step) for first in range(0, len(by_row), step)]
    if case.gradients:
        return lambda: chunked_gradients(case, inputs, chunks)
    return lambda: torch.cat([case.dense(*case.rows(inputs, chunk)) for chunk in chunks])


def chunked_gradients(case: Case, inputs: list[Tensor], chunks: list[slice]) -> Tensor:
    """Values and gradients of a block of rows at a time: those of rows stand side by side, those of columns add up."""
    parts = []
    for chunk in chunks:
        some = case.rows(inputs, chunk)
        sizes = [
            inputs[-1][chunk].numel(),
            *(x.numel() for v, x in zip(case.arguments, some, strict=False) if v.name in case.gradients),
        ]
        parts.append(case.with_gradients(case.dense, some).split(sizes))
    by_row = [True, *(v.category == "Vi" for v in case.arguments if v.name in case.gradients)]
    joined = [
        torch.cat(each) if rows else sum(each) for rows, each in zip(by_row, zip(*parts, strict=True), strict=True)
    ]
    return torch.cat(joined)


def sdpa(case: Case, inputs: list[Tensor]) -> Computation:
    """Torch's fused attention, on a batch of one with one head, which its kernels ask for."""
    x, y, b = (tensor[None, None] for tensor in inputs)
    return lambda: torch.nn.functional.scaled_dot_product_attention(x, y, b, scale=1.0)[0, 0]


def faiss(case: Case, inputs: list[Tensor]) -> Computation:
    """Exhaustive search; filling the index, a copy, is part of it."""
    library = importlib.import_module("faiss")
    x, y = (tensor.numpy() for tensor in inputs)
    library.omp_set_num_threads(torch.get_num_threads())

    def search() -> Tensor:
        index = library.IndexFlatL2(y.shape[1])
        index.add(y)
        return torch.from_numpy(index.search(x, case.opt_arg or 1)[1])

    return search


def sklearn(case: Case, inputs: list[Tensor]) -> Computation:
    """Brute-force neighbours, or the kernel matrix of as many rows at a time as a cache holds."""
    if case.gives_indices:
        return sklearn_neighbours(case, inputs)
    rbf_kernel = importlib.import_module("sklearn.metrics.pairwise").rbf_kernel
    x, y, b = (tensor.numpy() for tensor in inputs)
    step = max(1, CHUNK // (len(y) * y.itemsize))
    return lambda: torch.cat(
        [torch.from_numpy(rbf_kernel(x[i : i + step], y, gamma=1.0) @ b) for i in range(0, len(x), step)]
    )


def sklearn_neighbours(case: Case, inputs: list[Tensor]) -> Computation:
    x, y = (tensor.numpy() for tensor in inputs)
    if case.opt_arg is None:
        argmin = importlib.import_module("sklearn.metrics").pairwise_distances_argmin
        return lambda: torch.from_numpy(argmin(x, y))[:, None]
    NearestNeighbors = importlib.import_module("sklearn.neighbors").NearestNeighbors
    search = NearestNeighbors(n_neighbors=case.opt_arg, algorithm="brute")
    return lambda: torch.from_numpy(search.fit(y).kneighbors(x, return_distance=False))


PEERS: dict[str, Callable[[Case, list[Tensor]], Computation]] = {
    OURS: tritonkeops,
    "pykeops": pykeops,
    "torch": dense_torch,
    "sdpa": sdpa,
    "faiss": faiss,
    "sklearn": sklearn,
}


def versions() -> dict[str, str]:
    """The versions of the peers that are installed, and of NumPy."""
    libraries = [name for name in PEERS if installed(name) and name != "sdpa"]  # that is torch's
    return {name: importlib.import_module(name).__version__ for name in [*libraries, "numpy"]}


def installed(peer: str) -> bool:
    return peer == "sdpa" or importlib.util.find_spec(peer) is not None
