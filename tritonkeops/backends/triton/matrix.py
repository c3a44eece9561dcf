"""Functions for emitted Triton kernels that multiply matrices: parts of numbers, and their order in tensor cores."""
# mypy: disable-error-code="untyped-decorator"

import triton
import triton.language as tl

__all__ = ["dot_bf16", "for_tf32", "row_for_tf32", "tf32_parts"]

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot_bf16(a: tl.tensor, b: tl.tensor, total: tl.tensor) -> tl.tensor:
    """a @ b + total for bfloat16, which the interpreter would multiply as if they were integers."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def tf32_parts(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """A float32 as the sum of a number of 11 bits, as tensor cores read them, and the rest."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def for_tf32(x: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tensor:
    """Columns in the order 0 2 4 6 1 3 5 7 of each eight: what a product leaves in a thread's registers is then what
    the next product of float32 takes from there. The other factor has its rows in this order too (`row_for_tf32`)."""
    pairs = tl.reshape(x, [ROWS, COLUMNS // 8, 4, 2])
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), [ROWS, COLUMNS])


@triton.jit
def row_for_tf32(row: tl.tensor) -> tl.tensor:
    """Where a row goes in that order."""
    return row // 8 * 8 + row % 2 * 4 + row % 8 // 2
