"""How a kernel is laid out: plain printable data, chosen in one place and obeyed by lowering and emission."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from tritonkeops.formula.ir import Reduction, postorder


@dataclass(frozen=True)
class Schedule:
    """The C back end's choices.

    `form` is "simt" (components unrolled, everything in one loop over lanes), "dot" (large dims: loops over components
    with a register block of `width` lanes x `unroll` j) or "guarded" (insertion behind a test, `width` lanes at a
    time). `lanes` rows i share a tile, `unroll` rows j are folded together, `block_j` of them go to one partial
    accumulator (0: all), vectors longer than `unroll_dims` are looped over, indices have `index_bits` bits.
    """

    form: str
    lanes: int
    width: int
    unroll: int
    unroll_dims: int = 8
    block_j: int = 0
    index_bits: int = 32

    def __str__(self) -> str:
        blocks = f", blocks of {self.block_j} j" if self.block_j else ""
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


def choose(node: Reduction, itemsize: int, scheme: str = "direct_sum", rows: int = 0, long: bool = False) -> Schedule:
    """The schedule for a reduction on data of `itemsize` bytes.

    `rows` > 0 says that so few rows i are asked for that wider tiles would be idle; `long` that indices pass 2^31.
    """
    largest = max(x.dim for x in postorder([node]) if not isinstance(x, Reduction))
    bits = 64 if long or itemsize == 8 else 32
    blocks = 1024 if scheme == "block_sum" and node.op.float_sum else 0
    looped = largest > Schedule.unroll_dims
    width, fields = vector_bytes() // itemsize, node.op.fields([arg.dim for arg in node.args], node.k)
    if node.op.guard:
        schedule = Schedule("guarded", width, width, 12 if looped else 8, block_j=blocks, index_bits=bits)
    elif looped:
        schedule = Schedule("dot", 4 * width, width, 10, block_j=blocks, index_bits=bits)
    else:
        unroll = 8 if node.op.float_sum and len(fields) > 1 else 4  # LogSumExp rescales once per tile of j
        schedule = Schedule("simt", 4 * width, 4 * width, unroll, block_j=blocks, index_bits=bits)
    return replace(schedule, lanes=width, width=width) if 0 < rows <= width else schedule


def candidates(first: Schedule) -> list[Schedule]:
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
