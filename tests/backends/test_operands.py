"""Tables of operands: parts of numbers in columns, multiplied chunk by chunk as the kernels do it, here by torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tritonkeops.backends.triton.operands import RESIDENT, STREAMED, Product, Table, Written, plan, width_of
from tritonkeops.tile.ir import FLOAT, Index, Value

ROWS = 40
HALF, BRAIN = torch.float16, torch.bfloat16


def parts_of(x: Tensor, parts: int, dtype: torch.dtype) -> list[Tensor]:
    """A number as the sum of others: each is the nearest to what is left."""
    found, rest = [], x
    for _ in range(parts):
        found.append(rest.to(dtype).float())
        rest = rest - found[-1]
    return found


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "parts", "bits"), [(HALF, 1, 11), (HALF, 2, 22), (BRAIN, 2, 16), (BRAIN, 3, 24)])
def test_parts_sum_to_the_number(dtype: torch.dtype, parts: int, bits: int) -> None:
    """To so many bits; of small numbers in float16, to 2^-25."""
    x = torch.cat([numbers(10_000) * scale for scale in (1, 2**-6, 30)])
    left = (x - sum(parts_of(x, parts, dtype))).abs()
    floor = 2.0**-25 if dtype == HALF else 0
    assert (left <= torch.clamp(x.abs() * 2.0**-bits, min=floor)).all()


class Layout:
    """Inner products that share two tables, and the values of their operands."""

    def __init__(self, sizes: list[int], parts: tuple[int, int], addends: str = "ij", dtype: torch.dtype = HALF):
        self.tables, self.values, self.dtype = (Table(), Table()), dict[Value, Tensor](), dtype
        self.dots = [self._dot(n, dim, addends) for n, dim in enumerate(sizes)]
        self.products = [plan(dot, parts, *self.tables) for dot in self.dots]

    def _dot(self, n: int, dim: int, addends: str) -> Value:
        k = Index(f"k{n}", dim)
        factors = [Value("load", (), (2 * n + m, k), FLOAT, frozenset([axis, k])) for m, axis in enumerate("ij")]
        sums = [Value("load", (), (9 + 2 * n, 0), FLOAT, frozenset(axis)) for axis in addends]
        for each in factors:
            self.values[each] = numbers(ROWS, dim, seed=len(self.values)) / math.sqrt(dim)
        for each in sums:
            self.values[each] = 5 * numbers(ROWS, 1, seed=len(self.values))
        return Value("dot", (*factors, *sums), (k,), FLOAT, frozenset("ij"))

    def filled(self, table: Table) -> Tensor:
        """Its columns as the kernels write them: NaN where they write nothing."""
        found = torch.full((ROWS, table.size), math.nan)
        for value, k, starts in table.values:
            for part, columns in zip(parts_of(self.values[value], len(starts), self.dtype), starts, strict=True):
                for start in columns:
                    assert found[:, start : start + (k.size if k else 1)].isnan().all(), "written twice"
                    found[:, start : start + (k.size if k else 1)] = part
        for columns, number in (table.ones, 1.0), (table.zeros, 0.0):
            assert found[:, columns].isnan().all() and len(set(columns)) == len(columns)
            found[:, columns] = number
        return found

    def multiplied(self, product: Product) -> Tensor:
        left, right = (self.filled(table).double() for table in self.tables)
        total = torch.zeros(ROWS, ROWS, dtype=torch.float64)
        for chunk in product.chunks:
            total += left[:, chunk.left :][:, : chunk.width] @ right[:, chunk.right :][:, : chunk.width].T
        for step in range(0, product.steps * STREAMED, STREAMED):
            for chunk in product.repeated:
                columns = [table[:, at + step :][:, : chunk.width] for table, at in
                           ((left, chunk.left), (right, chunk.right))]  # fmt: skip
                total += columns[0] @ columns[1].T
        return total

    def exact(self, dot: Value) -> Tensor:
        a, b, *addends = dot.args
        total = self.values[a].double() @ self.values[b].double().T
        for addend in addends:
            total += self.values[addend] if "i" in addend.axes else self.values[addend].T
        return total


DIMS = [1, 3, 9, 10, 16, 17, 29, 30, 33, 64, 100, 128, 200, 256, 257, 300, 1000]
PARTS = {(1, 1): 2**-10, (2, 2): 2**-21, (1, 2): 2**-10, (2, 1): 2**-10}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("dim", DIMS)
def test_products_of_tables_are_inner_products(dim: int, parts: tuple[int, int]) -> None:
    layout = Layout([dim], parts)
    (dot,), (product,) = layout.dots, layout.products
    a, b = (layout.values[each].norm(dim=1).max().item() for each in dot.args[:2])
    assert torch.allclose(layout.multiplied(product), layout.exact(dot), rtol=0, atol=PARTS[parts] * a * b)


@pytest.mark.parametrize(("parts", "tolerance"), [(2, 2**-14), (3, 2**-21)])
@pytest.mark.parametrize("dim", [10, 64, 300])
def test_products_of_bfloat16_parts(dim: int, parts: int, tolerance: float) -> None:
    layout = Layout([dim], (parts, parts), dtype=BRAIN)
    assert torch.allclose(layout.multiplied(layout.products[0]), layout.exact(layout.dots[0]), rtol=0, atol=tolerance)


def test_data_of_few_bits_are_multiplied_exactly() -> None:
    """One part is enough for what is a float16 already, beside a factor that is not."""
    layout = Layout([40], (1, 1))
    for value in layout.dots[0].args[:2]:
        layout.values[value] = layout.values[value].half().float()
    assert torch.allclose(layout.multiplied(layout.products[0]), layout.exact(layout.dots[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("addends", ["", "i", "j", "ij"])
@pytest.mark.parametrize("sizes", [[10, 9], [64, 10], [300, 17], [16, 16, 257]])
def test_several_products_share_the_tables(sizes: list[int], addends: str) -> None:
    layout = Layout(sizes, (2, 2), addends)
    for dot, product in zip(layout.dots, layout.products, strict=True):
        assert torch.allclose(layout.multiplied(product), layout.exact(dot), rtol=0, atol=2**-20)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("dim", DIMS)
def test_layouts(dim: int, parts: int) -> None:
    """Chunks of powers of two that tensor cores take, within tables of as few."""
    layout = Layout([dim], (parts, parts))
    (product,) = layout.products
    for chunk in (*product.chunks, *product.repeated):
        assert chunk.width >= 16 and chunk.width.bit_count() == 1
        assert chunk.left + chunk.width <= layout.tables[0].size and chunk.right + chunk.width <= layout.tables[1].size
    assert product.steps == (math.ceil(dim / STREAMED) if dim > RESIDENT else 0)
    for table in layout.tables:
        assert table.size % 16 == 0 and not self_overlapping(table.written)
        unit = STREAMED if dim > RESIDENT else 16
        assert table.size <= max(64, 16 + parts * math.ceil(dim / unit) * unit)
    assert len(product.repeated) == (parts * (parts + 1) // 2 if dim > RESIDENT else 0)


def self_overlapping(written: list[Written]) -> bool:
    columns = [c for w in written for c in range(w.start, w.start + (w.k.size if w.k else 1))]
    return len(columns) != len(set(columns))


def test_small_terms_come_first() -> None:
    """What is added to a large number loses its last bits."""
    layout = Layout([64], (3, 3))
    addends, *chunks = layout.products[0].chunks
    part_at = {w.start: w.part for w in layout.tables[0].written}
    assert addends.width == 16
    assert [part_at[c.left] + (c.right - chunks[-1].right) // 64 for c in chunks] == [2, 2, 2, 1, 1, 0]


@pytest.mark.parametrize(("components", "width"), [(1, 16), (16, 16), (17, 32), (65, 128), (256, 256)])
def test_widths_of_accumulators(components: int, width: int) -> None:
    assert width_of(components) == width
