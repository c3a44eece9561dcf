"""The form "dot": pair values by tensor cores.

Beside the kernels of every module there are split_i and split_j, which cut the operands of products into parts. Rows i
lie along the first axis of a tile. Components of wide accumulators lie along the second axis of tensors of their own:
loops over what is stored of them are arithmetic on such tensors, with a vector of component numbers for the counter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tritonkeops.backends.triton.emitter import AXES, PACK_ROWS, Emitter, Mode, TileScope, row_of
from tritonkeops.backends.triton.operands import Chunk, Product, Table, plan, width_of
from tritonkeops.backends.triton.scope import Function, added, first_of
from tritonkeops.formula.ir import Field
from tritonkeops.tile.ir import FLOAT, Index, Position, Store, Value, indices_of, topological
from tritonkeops.tile.schedule import STREAMED


@dataclass(frozen=True)
class _Weights:
    """Where a wide factor of a second product is: its first column, columns of a part, and the number of parts."""

    start: int
    width: int
    parts: int


class _DotScope(TileScope):
    """Statements with products of matrices. What is added to a product is its accumulator."""

    emitter: DotEmitter

    def _args(self, value: Value) -> tuple[Value, ...]:
        if _accumulates(value):
            return value.args[0], value.args[1].args[0]
        return tuple(_read(value)) if value.op in _READ else super()._args(value)

    def _statement(self, value: Value, shared: bool) -> None:
        if value.op == "dot":
            self._product(value)
        elif _accumulates(value):
            self._sum(value)
        elif value.op != "dot_j":
            super()._statement(value, shared)

    def _product(self, value: Value) -> None:
        """An inner product of each pair, chunk by chunk into one accumulator."""
        product = self.emitter.products[value]
        name = self.named[value] = self.numbered("pair")
        self.function.line(f"{name} = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)")
        for chunk in product.chunks:
            left, right = self.emitter.left_names[chunk.left, chunk.width], self._right(str(chunk.right), chunk.width)
            self.function.line(f"{name} = {self.emitter.dot}({left}, {right}, {name})")
        if product.repeated:
            self._streamed(name, product)

    def _streamed(self, name: str, product: Product) -> None:
        """Long vectors: a few components of both sides at a time."""
        step = self.numbered("step")
        self.function.line(f"for {step} in range(0, {product.steps * STREAMED}, {STREAMED}):")
        self.function.depth += 1
        for chunk in product.repeated:
            left = self.emitter.block("left", added(step, str(chunk.left)), chunk.width) + ".T"
            right = self._right(added(step, str(chunk.right)), chunk.width)
            self.function.line(f"{name} = {self.emitter.dot}({left}, {right}, {name})")
        self.function.depth -= 1

    def _right(self, start: str, width: int) -> str:
        """Operands of rows j, once per tile."""
        key = start, width
        if key not in self.loaded or not start.isdigit():
            name = self.loaded[key] = self.numbered("y")
            self.function.line(f"{name} = {self.emitter.block('right', start, width)}")
        return self.loaded[key]

    def _sum(self, value: Value) -> None:
        """old + sum_j p_ij v_jk, by tensor cores."""
        old, product = value.args
        pair, weights = product.args
        where = self.emitter.weights[weights]
        name = self.numbered("sum")
        self.function.line(f"{name} = {self.expr(old)}")
        dot, precision = ("tl.dot", ', input_precision="tf32"') if where.parts else (self.emitter.dot, "")
        for left, parts in self._cut(pair, where.parts):
            for part in reversed(range(parts)):
                self.function.line(f"{name} = {dot}({left}, {self._weights(where, part)}, {name}{precision})")
        self.named[value] = name

    def _cut(self, pair: Value, parts: int) -> list[tuple[str, int]]:
        """The factor of a pair in parts, and how many parts of the other factor each is multiplied by."""
        if pair not in self.loaded:
            text = self.masked(pair, "0.0", False)
            text = f"for_tf32({text}, BLOCK_I, BLOCK_J)" if parts else f"({text}).to({self.emitter.operand})"
            name = self.loaded[pair] = self.spelled(text)
            if parts == 2:
                self.function.line(f"{name}_high, {name}_low = tf32_parts({name})")
        name = self.loaded[pair]
        return [(f"{name}_low", 1), (f"{name}_high", 2)] if parts == 2 else [(name, 1)]

    def _weights(self, where: _Weights, part: int) -> str:
        key = where, part
        if key not in self.loaded:
            name = self.loaded[key] = self.numbered("v")
            table, start = "tile" if where.parts else "right", str(where.start + part * where.width)
            self.function.line(f"{name} = {self.emitter.block(table, start, where.width)}.T")
        return self.loaded[key]


_READ = {"dot": 0, "dot_j": 1}
"""Operations with factors in tables: how many they have among the values of a tile."""


def _read(value: Value) -> Sequence[Value]:
    return value.args[: _READ.get(value.op, len(value.args))]


_TABLES = {
    "left": ("operands_i", "OPERANDS_I", "left"),
    "right": ("operands_j", "OPERANDS_J", "operands_j"),
    "tile": ("weights_j", "COLUMNS_J", "packed_j"),
}
"""Of each pointer to a table: what a descriptor of the table is called, its columns, and where it begins."""


def _accumulates(value: Value) -> bool:
    return value.op == "add" and value.args[1].op == "dot_j"


class DotEmitter(Emitter):
    """A module whose schedule has the form "dot"."""

    scope = _DotScope

    # What is where ----------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        program, s = self.program, self.schedule
        assert program.sizes
        approximate = [store.value for store in program.update] if not program.guard else []
        approximate += [program.screen] if program.screen else []
        self.operand, self.vectors = f"tl.{s.operand}", frozenset[Index]()
        self.descriptors: dict[tuple[str, int], str] = {}
        self.dot = "dot_bf16" if s.operand == "bfloat16" else "tl.dot"
        self.folded = [*approximate, *self._direct()]
        self.operands = {axis: Table() for axis in "ij"}
        self.products = {
            v: plan(v, self._parts(v), self.operands["i"], self.operands["j"])
            for v in topological(approximate)
            if v.op == "dot"
        }
        self.columns["j"].collect(_beside_products(approximate))
        self.weights: dict[Value, _Weights] = {}
        for v in topological(approximate):
            if v.op == "dot_j":
                self._add_weights(v.args[1])
        self.left_names = {
            (chunk.left, chunk.width): self.names.claim(f"x{n}") for n, chunk in enumerate(self._resident(), 1)
        }

    def _direct(self) -> list[Value]:
        """What is evaluated for single pairs, beside what the products give."""
        program = self.program
        updates = [store.value for store in program.update] if program.guard else []
        return [*(store.value for store in program.refine), *updates, *([program.guard] if program.guard else [])]

    def _parts(self, dot: Value) -> tuple[int, int]:
        """Parts that the two factors are cut into: one where the data are of the operands' type already."""
        exact = self.half and self.schedule.operand == self.data
        return tuple(1 if exact and _is_exact(arg) else self.schedule.parts for arg in dot.args[:2])  # type: ignore[return-value]

    def _add_weights(self, value: Value) -> None:
        if value in self.weights:
            return
        (k,) = value.indices
        parts, width = self.schedule.sum_parts, width_of(k.size)
        table = self.columns["j"] if parts else self.operands["j"]
        self.weights[value] = _Weights(table.size, width, parts)
        table.size += max(1, parts) * width

    def _resident(self) -> list[Chunk]:
        """The chunks of rows i that stay, each once."""
        found = {(chunk.left, chunk.width): chunk for product in self.products.values() for chunk in product.chunks}
        return list(found.values())

    def block(self, table: str, start: str, width: int) -> str:
        """Columns of a table for a tile, (width, rows): of "right" or "tile" for its rows j, of "left" for rows i."""
        rows = "col.T" if table == "left" else "lane[None, :]"
        length = "BLOCK_I" if table == "left" else "BLOCK_J"
        if not self.schedule.descriptors:
            columns = f"tl.arange(0, {width})[:, None]"
            return f"tl.load({table} + {columns if start == '0' else f'({start} + {columns})'} * {length} + {rows})"
        name = self.descriptors.setdefault((table, width), "")
        if not name:
            name = self.descriptors[table, width] = self.names.claim(f"{_TABLES[table][0]}_{width}")
        top = "" if table == "left" else f"j // BLOCK_J * {_TABLES[table][1]}"
        return f"{name}.load([{added(top or '0', start)}, 0])"

    def _describe(self, f: Function) -> None:
        """The descriptors of tables, by the widths of blocks that are read of them."""
        for (table, width), name in self.descriptors.items():
            _, columns, pointer = _TABLES[table]
            length, tiles = ("BLOCK_I", "") if table == "left" else ("BLOCK_J", "tl.cdiv(N, BLOCK_J) * ")
            f.line(f"{name} = tl.make_tensor_descriptor(")
            f.line(f"    {pointer}, [{tiles}{columns}, {length}], [{length}, 1], [{width}, {length}]")
            f.line(")")

    def _wide_pieces(self) -> dict[tuple[str, int], int]:
        found = {}
        for store in self.program.update:
            if any(v.op == "dot_j" for v in topological([store.value])):
                (k,) = indices_of(store.position)
                found[store.target, first_of(store.position)] = k.size
        return found

    def _widths(self) -> dict[str, int]:
        return super()._widths() | {f"operands_{axis}": table.size for axis, table in self.operands.items()}

    def _sizes(self) -> dict[str, object]:
        return super()._sizes() | {f"OPERANDS_{axis.upper()}": table.size for axis, table in self.operands.items()}

    def _moving(self) -> dict[str, tuple[str, str]]:
        return super()._moving() | {"right": ("operands_j", "OPERANDS_J")}

    def unless(self, role: str) -> str:
        return "tl.load(far) != 0" if role in ("reduce", "merge") else ""

    def read(self, value: Value) -> Sequence[Value]:
        return _read(value)

    # Wide accumulators ------------------------------------------------------------------------------------------------

    def open(self, scope: TileScope, k: Index) -> None:
        if not self._is_vector(k):
            super().open(scope, k)
            return
        self.vectors |= {k}
        width = width_of(k.size)
        scope.function.line(f"{k} = tl.arange(0, {width})[None, :]")
        if width > k.size:
            scope.function.line(f"{k}_within = {k} < {k.size}")
            scope.function.line(f"{k} = tl.minimum({k}, {k.size - 1})")
        scope.opened |= {k}

    def close(self, scope: TileScope, k: Index) -> None:
        if k in self.vectors:
            scope.opened -= {k}
        else:
            super().close(scope, k)

    def _update(self, f: Function, scope: TileScope, stores: Sequence[Store]) -> None:
        super()._update(f, scope, stores)
        for k in self.vectors:  # component numbers are of no use where all components have one formula
            for name in (f"{k}_within", str(k)):
                others = [line for line in f.lines if not line.strip().startswith(f"{name} = ")]
                f.lines = f.lines if Function(others).uses(name) else others

    def _is_vector(self, k: Index) -> bool:
        return k.size in self.wide.values()

    def within(self, k: Position) -> str:
        return next((f"{x}_within" for x in indices_of(k) if x in self.vectors and width_of(x.size) > x.size), "")

    def _shape(self, value: Value, mode: Mode) -> str:
        vector = next((k for k in value.indices if k in self.vectors), None)
        if vector is None or mode.word == "pack":
            return super()._shape(value, mode)
        return self.tile.shape("BLOCK_I" if value.axes & {"i", "tile"} else "1", str(width_of(vector.size)))

    def part_of(self, base: str, each: Field, k: int) -> str:
        place = self._place(each, k)
        if (each.name, k) in self.wide:
            place = added(place, f"tl.arange(0, {self.length_of(each.name, k)})[None, :]")
        return row_of(base, place, "BLOCK_I", "col")

    def columns_within(self, name: str, k: int) -> str:
        size = self.wide.get((name, k), 0)
        width = width_of(size) if size else 0
        return f", mask=tl.arange(0, {width})[None, :] < {size}" if width > size else ""

    def length_of(self, name: str, k: int) -> str:
        return str(width_of(self.wide[name, k])) if (name, k) in self.wide else ""

    # Tables -----------------------------------------------------------------------------------------------------------

    def _tables(self) -> dict[str, Callable[[], Function]]:
        return super()._tables() | {f"split_{axis}": partial(self._split, axis) for axis in "ij"}

    def _split(self, axis: str) -> Function:
        """Operands of an axis, tile by tile: (tiles, columns, rows of a tile)."""
        f, size = self._open_table(f"operands_{axis}", axis, "OPERANDS"), AXES[axis][1]
        scope, table = self._scope(f, Mode("pack", axis)), self.operands[axis]
        assert self.program.sizes
        extent = self.program.sizes["ij".index(axis)]
        scope.require([extent])
        f.line(f"is_far = ~({scope.expr(extent, 5)} + tl.zeros([{PACK_ROWS}], tl.float32) <= {self.program.limit!r})")
        for value, k, starts in table.values:
            self._write_parts(scope, value, k, starts, size)
        if axis == "j" and not self.schedule.sum_parts:
            for value, where in self.weights.items():
                self._write_parts(scope, value, next(iter(value.indices)), [[where.start]], size, padded=True)
        f.line("tl.atomic_max(far, tl.max(is_far.to(tl.int32)))")
        for first, stop in _runs(table.ones):
            self._fill(f, first, stop, "1.0", size)
        for first, stop in _runs(table.zeros):
            self._fill(f, first, stop, "0.0", size)
        return f

    def _write_parts(
        self, scope: TileScope, value: Value, k: Index | None, starts: list[list[int]], size: str, padded: bool = False
    ) -> None:
        """The parts of a value; `padded` with zeros beyond the last row, which a weight of 0 may not leave infinite."""
        f = scope.function
        if k:
            scope.open(k)
        scope.require([value])
        text = f"tl.where(first < N, {scope.expr(value)}, 0.0)" if padded else scope.expr(value)
        f.line(f"rest = {text} + tl.zeros([{PACK_ROWS}], tl.float32)")
        if k and self.operand == "tl.float16":
            f.line(f"is_far |= ~(tl.abs(rest) <= {self._most()!r})")
        for n, columns in enumerate(starts):
            f.line(f"high = rest.to({self.operand})")
            for column in columns:
                self._store_column(f, added(str(column), str(k)) if k else column, "high", size)
            if n + 1 < len(starts):
                f.line("rest -= high.to(tl.float32)")
        if k:
            scope.close(k)

    def _most(self) -> float:
        """The largest component of a factor in float16: of x y, with a small scale beside x, y may be out of range and
        x too small to keep its digits although their product is of moderate size. Two parts leave errors of 2^-25."""
        most = 4 * math.sqrt(self.program.limit)
        return most if self.half or self.schedule.parts == 1 else min(most, 32.0)

    def _fill(self, f: Function, first: int, stop: int, number: str, size: str) -> None:
        f.line(f"for k in range({first}, {stop}):")
        # The interpreter of Triton 3.6 makes no bfloat16 of a number.
        filled = f"tl.full([{PACK_ROWS}], {number}, tl.float32).to({self.operand})"
        f.line(f"    tl.store(tile + k * {size}, {filled}, mask=valid)")

    def _pack(self, axis: str) -> Function:
        f = super()._pack(axis)
        scope = self._scope(f, Mode("pack", axis))
        if axis == "j" and self.weights and self.schedule.sum_parts:
            f.line("tile += row_for_tf32(first % BLOCK_J) - first % BLOCK_J")
            for value, where in self.weights.items():
                (k,) = value.indices
                scope.open(k)
                scope.require([value])
                f.line(f"high, low = tf32_parts(tl.where(first < N, {scope.expr(value)}, 0.0))")
                f.line("low = tl.where(low == low, low, 0.0)  # infinity leaves no rest")
                if where.parts == 1:
                    f.line("high += low")
                self._store_column(f, added(str(where.start), str(k)), "high", "BLOCK_J")
                if where.parts == 2:
                    self._store_column(f, added(str(where.start + where.width), str(k)), "low", "BLOCK_J")
                scope.close(k)
        return f

    # A tile of j ------------------------------------------------------------------------------------------------------

    def _reduce_prologue(self) -> Function:
        f = super()._reduce_prologue()
        batch = "entry * operands_i_batch + " if self.batch_dims else ""
        if self.batch_dims:
            f.line("operands_j += entry * operands_j_batch")
        f.line(f"left = operands_i + {batch}block.to(tl.int64) * OPERANDS_I * BLOCK_I")
        f.line(self.tile.columns)
        for (start, width), name in self.left_names.items():
            columns = f"tl.arange(0, {width})[None, :]"
            columns = f"({start} + {columns})" if start else columns
            f.line(f"{name} = tl.load(left + {columns} * BLOCK_I + col)")
        return f

    def _reduce(self, body: Function) -> Function:
        self._describe(body)
        return super()._reduce(body)

    def _passed(self, f: Function, words: Sequence[str]) -> list[str]:  # type: ignore[override]
        lefts = [name for name in (*self.left_names.values(), *self.descriptors.values()) if f.uses(name)]
        return [*lefts, *super()._passed(f, [*words, "left"])]

    def _guarded(self, f: Function, scope: TileScope) -> None:
        """Test the tile by products; then evaluate what may be among the best directly, of each row i the first such j
        of the tile at a time, so that of equal values the first one is kept."""
        program = self.program
        assert program.guard is not None and program.screen is not None
        self._open_tile(f)
        scope.require([program.screen])
        f.lines = [line for line in f.lines if "rows = " not in line]
        f.line(f"if tl.max({scope.expr(program.screen, 9)}.to(tl.int32)) > 0:")
        f.depth += 1
        f.line(f"wanted = {self._candidates(scope)}")
        f.line("while tl.max(wanted.to(tl.int32)) > 0:")
        f.depth += 1
        f.line("u = tl.min(tl.where(wanted, lane[None, :], BLOCK_J), axis=1, keep_dims=True)")
        f.line("inside = u < BLOCK_J")
        f.line("rows = j + u")
        f.line("row = tl.minimum(rows, N - 1)")
        row = self._scope(f, Mode("row"), self.row_names)
        row.names = scope.names
        row.require([program.guard], later=[s.value for s in program.update])
        self._insert(f, row)
        f.line("wanted = wanted & (lane[None, :] > u)")
        f.depth = 1
        if self.acc_names:
            f.line(f"return {', '.join(self.acc_names.values())}")

    def _masks(self) -> bool:
        return self.program.guard is not None

    def _candidates(self, scope: TileScope) -> str:
        """The pairs of a tile that may pass the guard."""
        assert self.program.screen is not None
        text = _pairwise(scope, self.program.screen)
        return f"({text}) & (valid if MASKED else True)"

    def _refined(self) -> list[str]:
        (store,) = self.program.refine
        kept = next(variable for (field, _), variable in self.acc_names.items() if field != store.target)
        return [kept, self.acc_names[store.target, store.position]]  # type: ignore[index]


def _pairwise(scope: TileScope, screen: Value) -> str:
    """A screen, which is about the best of a tile, asked of each pair of it."""
    if screen.op == "or":
        return " | ".join(f"({_pairwise(scope, arg)})" for arg in screen.args)
    (comparison,) = screen.args
    best, bound = comparison.args
    sign = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}[comparison.op]
    pair = scope.expr(best.args[0], 9)
    return f"~({pair} {sign} {scope.expr(bound, 9)}) & ({pair} == {pair})"


def _beside_products(roots: Sequence[Value]) -> list[Value]:
    """What the statements of a tile read of rows j beside operands of products."""
    found: dict[Value, None] = {}
    seen: set[Value] = set()
    stack = list(reversed(roots))
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.type == FLOAT and value.axes == frozenset("j"):
            found[value] = None
        else:
            stack.extend(reversed(_read(value)))
    return list(found)


def _is_exact(value: Value) -> bool:
    """Whether a value is an input, or that times a power of two."""
    if value.op == "mul":
        number, x = value.args
        return number.op == "const" and _is_power(number.attr[0]) and x.op == "load"
    return value.op == "load" or (value.op == "neg" and _is_exact(value.args[0]))


def _is_power(number: object) -> bool:
    n, d = getattr(number, "numerator", 0), getattr(number, "denominator", 0)
    return bool(n and not abs(n) & (abs(n) - 1) and not d & (d - 1))


def _runs(columns: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive numbers, as where they begin and end."""
    found: list[tuple[int, int]] = []
    for column in columns:
        if found and found[-1][1] == column:
            found[-1] = found[-1][0], column + 1
        else:
            found.append((column, column + 1))
    return found
