"""How a kernel is laid out: plain printable data, chosen in one place and obeyed by lowering and emission."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tritonkeops.formula.ir import Reduction, Var, postorder


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every back end's schedule says, and all that lowering reads.

    `form` is "simt" (every component a scalar), "looped" or "dot" (loops over the components of long vectors) or
    "guarded" (insertion into sorted lists behind a test). Vectors longer than `unroll_dims` and lists of more than
    `unroll_places` neighbours are looped over. With `screened`, a whole tile of j is tested before its rows are; with
    `spread`, a sum over j has an accumulator for each row of the tile, added up after the loop; with `coarse`, the
    loop finds the tile that holds an extremum, and its row afterwards. Sums add blocks of `block_sum` rows j
    (0: all at once). Indices have `index_bits` bits.
    """

    form: str
    unroll_dims: int = 8
    unroll_places: int = 8
    screened: bool = False
    spread: bool = False
    coarse: bool = False
    block_sum: int = 0
    index_bits: int = 32


# CPU ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CpuSchedule(Schedule):
    """The C back end's choices: `lanes` rows i share a tile, a loop over lanes takes `width` of them ("dot" and
    "guarded": a register block of `width` lanes x `unroll` j), and `unroll` rows j are folded together."""

    lanes: int
    width: int
    unroll: int

    def __str__(self) -> str:
        blocks = f", blocks of {self.block_sum} j" if self.block_sum else ""
        return (
            f"{self.form}, {self.lanes} lanes in steps of {self.width}, {self.unroll} j at a time, "
            f"dims above {self.unroll_dims} looped{blocks}, {self.index_bits}-bit indices"
        )


@functools.cache
def vector_bytes() -> int:
    """Width of this CPU's vectors, by the flags that Linux reports; 16 where they are not known."""
    if platform.machine() in ("x86_64", "AMD64"):
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            return 32
        return 64 if "avx512f" in flags else 32 if "avx2" in flags else 16
    return 16


def choose_cpu(
    node: Reduction, itemsize: int, scheme: str = "direct_sum", rows: int = 0, long: bool = False, pattern: str = ""
) -> CpuSchedule:
    """The schedule for a reduction on data of `itemsize` bytes, over the pairs of a pattern of some kind if not of all.

    `rows` > 0 says that so few rows i are asked for that wider tiles would be idle; `long` that indices pass 2^31.
    """
    bits = 64 if long or itemsize == 8 else 32
    blocks = 1024 if scheme == "block_sum" and node.op.float_sum else 0
    looped = _largest_dim(node) > Schedule.unroll_dims
    width, fields = vector_bytes() // itemsize, node.op.fields([arg.dim for arg in node.args], node.k)
    if node.op.guard:
        form, lanes, step, unroll = "guarded", width, width, 12 if looped else 8
    elif looped:
        form, lanes, step, unroll = "dot", 4 * width, width, 10
    else:  # LogSumExp rescales once per tile of j
        form, lanes, step, unroll = "simt", 4 * width, 4 * width, 8 if node.op.float_sum and len(fields) > 1 else 4
    if 0 < rows <= width:
        lanes = step = width
    unroll = min(unroll, max(1, _MOST_STATEMENTS // _statements(node)))
    return CpuSchedule(form=form, lanes=lanes, width=step, unroll=unroll, block_sum=blocks, index_bits=bits)


_MOST_STATEMENTS = 500  # of a pair, times rows j of a tile: compilers take time beyond proportion for long loops


def _statements(node: Reduction) -> int:
    """About how many a pair takes; components that are looped over count once."""
    of_pairs = [x for x in postorder([node]) if x.axes == frozenset("ij")]
    return max(1, sum(x.dim if x.dim <= Schedule.unroll_dims else 1 for x in of_pairs))


def _largest_dim(node: Reduction) -> int:
    return max(x.dim for x in postorder([node]) if not isinstance(x, Reduction))


# GPU ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GpuSchedule(Schedule):
    """The Triton back end's choices: tiles of `block_j` x `block_i` pairs, i along the last axis, so that a thread owns
    whole columns and reduces over j by itself; `num_warps` warps share a tile. With `packed`, what depends on j alone
    is computed once per call and stored tile by tile, for wide loads. `registers` of a thread at most (0: the
    assembler's choice)."""

    block_i: int
    block_j: int
    num_warps: int
    packed: bool = True
    registers: int = 0

    def __str__(self) -> str:
        words = [f"{self.form}, tiles of {self.block_j} j x {self.block_i} i, {self.num_warps} warps"]
        words += [word for word in ("packed", "spread", "coarse", "screened") if getattr(self, word)]
        words += [f"blocks of {self.block_sum} j"] if self.block_sum else []
        words += [f"{self.registers} registers"] if self.registers else []
        return ", ".join([*words, f"dims above {self.unroll_dims} looped", f"{self.index_bits}-bit indices"])


_UNROLL = 16  # components: more would not fit into registers beside the tile
_PLACES = 32  # neighbours whose values and rows still fit
_REGISTERS = 96  # of a thread, for the accumulators of a spread sum, or for what belongs to rows i
_THREE_BLOCKS = 168  # registers of a thread when three blocks of four warps share a multiprocessor
_SUMMED = 64  # numbers that a partial sum adds up, one after the other
_UNPACKED = 16  # rows i that read each row j too seldom to pay for packing it
_OF_RANGES = 128  # rows i: clusters of points are not much larger
_GATHERED = 128, 8, 4  # block_i, block_j and warps: each pair has addresses of its own, which take registers
_WARP = 32


def choose_gpu(
    node: Reduction, itemsize: int, scheme: str = "direct_sum", rows: int = 0, long: bool = False, pattern: str = ""
) -> GpuSchedule:
    """The schedule for a reduction in arithmetic of `itemsize` bytes; `rows`, `long` and `pattern` as in `choose_cpu`.

    The sizes are those with the fewest instructions per pair for compute capability 9.0 (bench/machine_code.py).
    """
    looped, guarded, words = _largest_dim(node) > _UNROLL, node.op.guard is not None, itemsize // 4
    if pattern == "ranges":
        rows = rows or _OF_RANGES
    fields = node.op.fields([arg.dim for arg in node.args], node.k)
    in_memory = max(field.size for field in fields) > (_PLACES if guarded else _UNROLL)
    accumulators = 0 if in_memory else words * sum(field.size for field in fields)
    kept = words * sum(v.dim for v in postorder([node]) if isinstance(v, Var) and v.axes == node.axes)
    column = accumulators + (0 if looped else kept)
    spreads = node.op.linear and node.op.compensated is not None and not in_memory
    pairs = _pairs_per_thread(accumulators if spreads else 0, column, 32 if looped else 64, words)
    spread = spreads and accumulators * pairs <= _REGISTERS
    if pattern == "lists":
        block_i, block_j, num_warps = min(rows or _GATHERED[0], _GATHERED[0]), *_GATHERED[1:]
    elif guarded:
        block_i, block_j, num_warps = _list_tile(node.k, itemsize, rows, looped)
    else:
        block_i, block_j, num_warps = _tile(pairs, _columns(column - accumulators * spread), rows)
    return GpuSchedule(
        form="guarded" if guarded else "looped" if looped else "simt",
        unroll_dims=_UNROLL,
        unroll_places=_PLACES,
        screened=guarded,
        spread=spread,
        coarse=not pattern and any(f.index for f in fields) and len(fields) == sum(f.size for f in fields),
        block_sum=_SUMMED * block_j if scheme == "block_sum" and node.op.float_sum and not in_memory else 0,
        index_bits=64 if long else 32,
        block_i=block_i,
        block_j=block_j,
        num_warps=num_warps,
        packed=not 0 < rows <= _UNPACKED,
        registers=_THREE_BLOCKS if node.op.float_sum and not node.op.linear and accumulators == 2 else 0,
    )


def _columns(registers: int) -> int:
    """How many rows i a thread owns, when each takes so many registers: they share what it loads of j."""
    return next((n for n in (4, 2) if n * registers <= _REGISTERS), 1)


def _tile(pairs: int, columns: int, rows: int) -> tuple[int, int, int]:
    """block_i, block_j and warps."""
    if 0 < rows <= _UNPACKED:
        return rows, 1024 // rows, 4
    block_i = min(rows or 512, 4 * columns * _WARP)
    num_warps = max(1, block_i // (columns * _WARP))
    return block_i, pairs * num_warps * _WARP // block_i, num_warps


def _list_tile(k: int, itemsize: int, rows: int, looped: bool) -> tuple[int, int, int]:
    """For sorted lists, a tile of one warp: testing it is then a vote, without a barrier."""
    columns = 1 if k > _PLACES // 2 else 4 if looped else 2
    block_i = min(rows or 512, columns * _WARP)
    return block_i, max(256 // itemsize // columns, 256 // block_i), 1


def _pairs_per_thread(spread: int, column: int, most: int, words: int) -> int:
    """How many pairs of a tile a thread takes: as many as fit beside its columns, since loads are shared among them.

    `spread` and `column` are the registers of a pair's accumulators, and those of a row i; numbers take `words`.
    """
    pairs = min(most, 16 if column > _REGISTERS // 2 else 32 if column > _REGISTERS // 4 else most) // words
    while pairs > 16 and spread * pairs > _REGISTERS:
        pairs //= 2
    return pairs


# Tuning ---------------------------------------------------------------------------------------------------------------

AnySchedule = TypeVar("AnySchedule", bound=Schedule)


def candidates(first: CpuSchedule) -> list[CpuSchedule]:
    """Schedules worth measuring for a reduction whose default is `first`: its neighbours in lanes and unrolling."""
    lanes = {first.lanes * 2, first.lanes, max(first.width, first.lanes // 2)}
    unrolls = {max(1, first.unroll // 2), first.unroll, first.unroll * 2}
    blocked = first.width < first.lanes or first.form == "guarded"
    found = [
        replace(first, lanes=n, width=first.width if blocked else n, unroll=unroll)
        for n in sorted(lanes)
        for unroll in sorted(unrolls)
    ]
    return [first, *(schedule for schedule in found if schedule != first)]
