"""How a kernel is laid out: plain printable data, chosen in one place and obeyed by lowering and emission."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from tritonkeops.formula.contracted import Contracted
from tritonkeops.formula.ir import Apply, Node, Reduction, Var, postorder


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every back end's schedule says, and all that lowering reads.

    `form` is "simt" (every component a scalar), "looped" or "dot" (loops over the components of long vectors) or
    "guarded" (insertion into sorted lists behind a test). Vectors longer than `unroll_dims` and lists of more than
    `unroll_places` neighbours are looped over. With `screened`, a whole tile of j is tested before its rows are; with
    `spread`, a sum over j has an accumulator for each row of the tile, added up after the loop; with `coarse`, the
    loop finds the tile that holds an extremum, and its row afterwards. Sums add blocks of `block_sum` rows j
    (0: all at once). Indices have `index_bits` bits. Rows j are split into `splits` parts (0: as many as fill the
    device, which the launch knows), whose results are merged.

    Of contractions: the `limit` of sizes up to which they are used, and the `margin`, relative to sizes, within which
    approximate values may be wrong.
    """

    form: str
    unroll_dims: int = 8
    unroll_places: int = 8
    screened: bool = False
    spread: bool = False
    coarse: bool = False
    block_sum: int = 0
    index_bits: int = 32
    splits: int = 0
    limit: float = 0
    margin: float = 0


def _in_parts(schedule: Schedule) -> str:
    return f", j in {schedule.splits} parts" if schedule.splits else ""


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
            f"dims above {self.unroll_dims} looped{blocks}, {self.index_bits}-bit indices{_in_parts(self)}"
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
    elif looped and _long_inside(node):
        form, lanes, step, unroll = "dot", 4 * width, width, 10
    elif looped:
        form, lanes, step, unroll = "dot", 4 * width, 4 * width, 4
    else:  # LogSumExp rescales once per tile of j
        form, lanes, step, unroll = "simt", 4 * width, 4 * width, 8 if node.op.float_sum and len(fields) > 1 else 4
    if 0 < rows <= width:
        lanes = step = width
    unroll = min(unroll, max(1, _MOST_STATEMENTS // _statements(node)))
    return CpuSchedule(form=form, lanes=lanes, width=step, unroll=unroll, block_sum=blocks, index_bits=bits)


def _long_inside(node: Reduction) -> bool:
    """Whether pairs have long vectors on the way to the values that are reduced."""
    pairs = (x for x in postorder(node.args) if x.axes == frozenset("ij") and x not in node.args)
    return any(x.dim > Schedule.unroll_dims for x in pairs)


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
    assembler's choice). `num_stages` of loads are under way at a time.

    In the form "dot", tiles are block_i x block_j, i along the first axis: the products of tensor cores then lie in
    registers row by row, and are reduced over j by shuffles among four threads. Operands of products are numbers of
    the type `operand`, or sums of `parts` such numbers; where sums over j are products too, their operands are sums of
    `sum_parts` numbers of 11 bits (tf32), or 0: of the type `operand`. With `descriptors`, tables are read by the unit
    that copies tensors, where the target has one (TMA); it counts rows with 31 bits."""

    block_i: int
    block_j: int
    num_warps: int
    packed: bool = True
    registers: int = 0
    num_stages: int = 1
    operand: str = ""
    parts: int = 0
    sum_parts: int = 0
    descriptors: bool = False

    def __str__(self) -> str:
        words = [f"{self.form}, tiles of {self.block_j} j x {self.block_i} i, {self.num_warps} warps"]
        words += [word for word in ("packed", "spread", "coarse", "screened", "descriptors") if getattr(self, word)]
        words += [f"blocks of {self.block_sum} j"] if self.block_sum else []
        words += [f"{self.registers} registers"] if self.registers else []
        words += [f"{self.num_stages} stages"] if self.num_stages > 1 else []
        words += [f"dims above {self.unroll_dims} looped", f"{self.index_bits}-bit indices{_in_parts(self)}"]
        return ", ".join(words)


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


# Tensor cores --------------------------------------------------------------------------------------------------------

_HALVES = ("float16", "bfloat16")
_LEAST_COMPONENTS = 9  # of vectors whose product pays for tables of operands
_LEAST_WEIGHTS = 8  # components of sums over j that are worth a product of matrices
_NEAR = 64.0  # of distances in exponents: errors of 2^-22 times that
_LOOSE = 4096.0  # where the caller allows more, or data have few bits
_IN_RANGE = 2.0**15  # of inner products, which cancel nothing: all components, and what is added, are float16 yet
_FINITE = 1e30
_MARGIN = 2.0**-14  # of products of two bfloat16 parts
SHARED = 232448  # bytes of shared memory that a block may have, for compute capability 9.0
_RESERVED = 4096  # of them, for reductions over a tile and the like
_TILES = ((128, 128, 8, 2), (64, 128, 4, 2), (128, 64, 8, 1), (64, 64, 4, 1), (64, 32, 4, 1))
_SMALL_TILES = ((64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 1), (32, 32, 4, 1))
"""block_i, block_j, warps, and stages of loads; smaller ones for GPUs whose operands pass through registers."""
_MOST_REGISTERS = 220  # of a thread, for values
RESIDENT = 256  # components up to which the rows of a block stay in shared memory
STREAMED = 64  # components that are loaded together beyond
_OF_SUMS = 256  # rows j: tensor cores cut off what they add, so sums of products stay short


def choose_dot(
    node: Reduction, found: Contracted, data: str, precision: str, scheme: str = "direct_sum", rows: int = 0,
    long: bool = False, shared: int = SHARED,
) -> GpuSchedule | None:  # fmt: skip
    """The schedule for a reduction by contractions, on data of a dtype; None where that does not pay, or does not fit
    into `shared` bytes.

    `precision` is "highest": as good as float32, or "high" or "medium" as in `torch.set_float32_matmul_precision`.
    """
    contracted = found.node
    products, weights = [x.dim for x in _products(contracted)], _weights(contracted)
    wide = sum(power_of_two(n) for n in weights)
    several = not node.op.float_sum and node.args[0].dim > 1  # values to select among, each in its own tile
    short = max(products, default=0) < _LEAST_COMPONENTS and not weights
    if 0 < rows <= _UNPACKED or wide > 256 or short or several:
        return None
    operand, parts, limit = _operands(node, found, data, precision)
    sum_parts = {"highest": 2}.get(precision, 1) if data not in _HALVES else 0 if data == "bfloat16" else 1
    height, softmax = 64 if 0 < rows <= 64 else 128, node.op.exponential and wide > 0
    factors = [STREAMED if n > RESIDENT else -(-n // 16) * 16 for n in products]
    left, right = (sum(16 + p * n for n in factors) for p in (parts, 1 if data in _HALVES else parts))
    row_j = 2 * right + (4 * sum_parts or 2) * wide
    room = shared - _RESERVED
    tiles = _TILES if shared >= SHARED else _SMALL_TILES
    fitting = [t for t in tiles if t[0] <= height and 2 * left * t[0] + t[3] * row_j * t[1] <= room]
    if not fitting:
        return None
    block_i, block_j, num_warps, num_stages = next(
        (t for t in fitting if _registers(t, wide, sum_parts) + 32 * softmax <= _MOST_REGISTERS), fitting[-1]
    )
    blocks = _OF_SUMS if wide and sum_parts == 2 else 0 if wide else _SUMMED * block_j
    in_list = _in_list(node, data, precision)
    return GpuSchedule(
        form="dot",
        unroll_dims=_LEAST_WEIGHTS - 1,
        unroll_places=_PLACES,
        screened=in_list,
        coarse=not in_list and not node.op.float_sum,
        block_sum=blocks if scheme == "block_sum" and node.op.float_sum else 0,
        index_bits=64 if long else 32,
        limit=limit,
        margin=_MARGIN,
        block_i=block_i,
        block_j=block_j,
        num_warps=num_warps,
        num_stages=num_stages,
        operand=operand,
        parts=parts,
        sum_parts=sum_parts,
        descriptors=not long and max(products, default=0) <= RESIDENT and not (wide and sum_parts > 1),
    )


def _operands(node: Reduction, found: Contracted, data: str, precision: str) -> tuple[str, int, float]:
    """The type of operands, the parts they are cut into, and up to which sizes that will do.

    Two parts of 11 bits are as good as a float32, if small numbers may lose their last bits: in exponents, where errors
    are absolute, they may. Elsewhere it takes three parts of 8 bits, or two to tell what has to be looked at.
    """
    differences = found.center_of is not None
    exponents = _in_exponents(found.node)
    bounded = exponents and not node.op.exponential and _weights(found.node)  # an infinite weight would give NaN
    if data in _HALVES:
        limit = _LOOSE if differences else _FINITE if data == "bfloat16" else _IN_RANGE
        return data, 3 if data == "bfloat16" else 2, min(limit, _NEAR) if bounded else limit
    if _in_list(node, data, precision):
        return "bfloat16", 2, _FINITE
    if exponents:
        limit = _IN_RANGE if not differences else _NEAR if precision == "highest" else _LOOSE
        return "float16", 2 if precision == "highest" else 1, min(limit, _NEAR) if bounded else limit
    return "bfloat16", {"highest": 3, "high": 2}.get(precision, 1), _FINITE


def _in_list(node: Reduction, data: str, precision: str) -> bool:
    """Whether values are selected one by one: the K best, and single ones that products may not tell apart."""
    return not node.op.float_sum and (node.op.guard is not None or (data == "float32" and precision == "highest"))


def _products(node: Reduction) -> list[Node]:
    """The inner products of what belongs to rows i with what belongs to rows j: their factors' product."""
    found = [x.args[0] for x in postorder(node.args) if isinstance(x, Apply) and x.op.name == "Sum"]
    return [f for f in found if isinstance(f, Apply) and _sides(f) == {frozenset("i"), frozenset("j")}]


def _sides(f: Apply) -> set[frozenset[str]]:
    return {arg.axes for arg in f.args} if f.op.name == "Mult" and len(f.axes) == 2 else set()


def _weights(node: Reduction) -> list[int]:
    """Components of the vectors of rows j that are summed with weights of pairs."""
    stack, found = [node.args[-1]], []
    while stack:
        each = stack.pop()
        if isinstance(each, Apply) and each.op.name in ("Concat", "Mult") and each.dim >= _LEAST_WEIGHTS:
            stack.extend(each.args)
        elif each.dim >= _LEAST_WEIGHTS and each.axes <= frozenset("ij") - node.axes:
            found.append(each.dim)
    return found


def _in_exponents(node: Reduction) -> bool:
    """Whether inner products are read in exponents only."""
    stack = list(node.args[1:] if node.op.exponential else node.args)
    products = set(_products(node))
    while stack:
        each = stack.pop()
        if each in products:
            return False
        if not (isinstance(each, Apply) and each.op.name in ("Exp", "Exp2")):
            stack.extend(each.operands)
    return True


def _registers(tile: tuple[int, int, int, int], wide: int, sum_parts: int) -> int:
    """Of a thread, for the values of pairs, their parts, and the sums of a block and of all blocks."""
    block_i, block_j, num_warps, _ = tile
    return block_i * (block_j * (1 + sum_parts * (wide > 0)) + max(1, sum_parts) * wide) // (32 * num_warps)


def power_of_two(n: int) -> int:
    """The power of two that is not smaller."""
    return 1 << (n - 1).bit_length()
