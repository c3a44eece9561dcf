"""The parts of a module of Triton kernels, and their texts.

    pack_j, pack_i   what depends on one axis alone, once per call, stored tile by tile so that loads are wide
    reduce           one program per block of rows i (and part of j): prologue, loop over tiles of j, results
    merge            joins the accumulators of the parts of j

and functions that these share: fold (a tile of j into the accumulators), refine, merge, finish. The text is meant to be
read, and to be what a Triton author would write.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tritonkeops.backends.triton.columns import Columns
from tritonkeops.backends.triton.scope import (
    LARGEST,
    LIBRARY,
    NAN,
    Function,
    Names,
    Scope,
    Types,
    added,
    by_counter,
    first_of,
    text_of,
)
from tritonkeops.backends.triton.walk import WALKS
from tritonkeops.formula.ir import Field
from tritonkeops.tile.accumulate import everywhere
from tritonkeops.tile.ir import (
    FLOAT,
    MASKED,
    TILE_REDUCTIONS,
    Index,
    Position,
    Store,
    TileProgram,
    Value,
    indices_of,
    topological,
)
from tritonkeops.tile.schedule import GpuSchedule

MODULES = {
    "math": sorted({*LIBRARY.values(), "mul_rn"}),
    "matrix": ["dot_bf16", "for_tf32", "row_for_tf32", "tf32_parts"],
}
"""Functions that kernels import, by module of tritonkeops/backends/triton."""
_WORDS = (
    "i", "j", "u", "M", "N", "lane", "col", "tile", "valid", "row", "rows", "row_i", "row_j", "begin", "end", "full",
    "first", "block", "blocks", "entry", "slot", "mine", "held", "held_index", "other", "other_index", "split",
    "splits", "part",
    "packed_i", "packed_j", "packed_i_batch", "packed_j_batch", "parts", "parts_index", "value", "index", "count",
    "MASKED", "SPLIT", "BLOCK_I", "BLOCK_J", "BLOCK_SUM", "COLUMNS_I", "COLUMNS_J", "FLOATS", "INDICES", "INF",
    "best", "wins", "fold", "merge_two", "finish", "refine", "operands_i", "operands_i_batch", "operands_j",
    "operands_j_batch", "far", "left", "right", "OPERANDS_I", "OPERANDS_J", "wanted",
    "rest", "high", "low", "is_far",
    *MODULES["math"], *MODULES["matrix"],
)  # fmt: skip
_TABLES = (
    "packed_i", "packed_i_batch", "packed_j", "packed_j_batch", "operands_i", "operands_i_batch", "operands_j",
    "operands_j_batch", "far", "parts", "parts_index", "value", "index",
)  # fmt: skip
_PATTERN_WORDS = ("top", "span", "start_i", "head", "inside", "listed_j")
_NEUTRAL = {"sum_j": "0.0", "max_j": "-INF", "min_j": "INF", "argmax_j": "-INF", "argmin_j": "INF"}
PACK_ROWS = 128
"""Rows that a program of the pack kernels takes."""
AXES = {"i": ("M", "BLOCK_I"), "j": ("N", "BLOCK_J")}
_PACK_BLOCKS = f"tl.cdiv(tl.cdiv({{0}}, {{1}}) * {{1}}, {PACK_ROWS})"


@dataclass(frozen=True)
class Param:
    """An argument of a kernel: its name in the text, its `role`, and the input and batch dimension it is about."""

    name: str
    role: str
    input: int = -1
    batch: int = 0


@dataclass(frozen=True)
class Module:
    """An emitted module: its text, its kernels ("pack_j", "pack_i", "reduce", "merge") by name and parameters, the
    columns that each axis packs, and the floats and indices of an accumulator."""

    text: str
    names: dict[str, str]
    params: dict[str, tuple[Param, ...]]
    columns: dict[str, int]
    floats: int
    indices: int
    held: bool


@dataclass(frozen=True)
class Tile:
    """How a tile lies in a tensor: rows i along its last axis, or along its first."""

    along_i: str
    along_j: str
    axis_j: int

    @property
    def columns(self) -> str:
        return f"col = tl.arange(0, BLOCK_I)[{self.along_i}]"

    @property
    def over_j(self) -> str:
        """How a reduction over the rows j of a tile is called."""
        return f"axis={self.axis_j}, keep_dims=True"

    def shape(self, along_i: str, along_j: str) -> str:
        return f"[{along_i}, {along_j}]" if self.axis_j else f"[{along_j}, {along_i}]"


I_LAST = Tile("None, :", ":, None", 0)
I_FIRST = Tile(":, None", "None, :", 1)


@dataclass(frozen=True)
class Mode:
    """How a function sees the rows of an axis: "tile" (a tile of j), "row" (one j, or one for each i), "pack" (rows of
    one axis in a vector)."""

    word: str
    axis: str = ""


class TileScope(Scope):
    """Statements of one function, with reductions over the tile of j."""

    emitter: Emitter
    mode: Mode

    def kept(self, value: Value) -> bool:
        return value.op in TILE_REDUCTIONS or super().kept(value)

    def operation(self, value: Value) -> str:
        if value.op == "mul" and _of_one_axis(value):
            return f"mul_rn({', '.join(self.operands(value.args))})"
        if value.op not in TILE_REDUCTIONS:
            return super().operation(value)
        if value.op.startswith("arg"):
            return self._arg(value)
        terms = self.masked(value.args[0], _NEUTRAL[value.op], value.op == "sum_j")
        return f"tl.{value.op.removesuffix('_j')}({terms}, {self.emitter.tile.over_j})"

    def masked(self, x: Value, neutral: str, summed: bool) -> str:
        """A pair's value, or the neutral one in rows beyond the end; sums are made in the accumulators' type."""
        text = self.expr(x, 9)
        if "j" not in x.axes:
            shape = self.emitter.tile.shape("BLOCK_I", "BLOCK_J")
            text = self.spelled(f"{text} + tl.zeros({shape}, {self.types.of(x)})")
        if summed and self.types.of(x) != self.types.acc:
            text += f".to({self.types.acc})"
        return f"tl.where(valid, {text}, {neutral}) if MASKED else {text}"

    def spelled(self, text: str) -> str:
        name = self.numbered("t")
        self.function.line(f"{name} = {text}")
        return name

    def _arg(self, value: Value) -> str:
        """The first row of the tile whose value is the best one."""
        (x,) = value.args
        extremum = value.op.removeprefix("arg")
        best = next((n for v, n in self.named.items() if v.op == extremum and v.args[0] is x), None)
        if best is None:
            word = extremum.removesuffix("_j")
            best = self.spelled(f"tl.{word}({self.masked(x, _NEUTRAL[value.op], False)}, {self.emitter.tile.over_j})")
        wins = f"{self.exact(x, 2)} == {best}"
        largest = LARGEST[self.emitter.schedule.index_bits]
        rows = f"tl.where(({wins}) & valid if MASKED else {wins}, rows, {largest})"
        return f"tl.min({rows}, {self.emitter.tile.over_j})"


class Emitter:
    """The parts of a module; forms of schedules that need more, or other lines, are made by subclasses."""

    scope = TileScope

    def __init__(
        self, program: TileProgram, dtype: str, dtype_acc: str, batch_dims: int, fallback: bool = False
    ) -> None:
        assert isinstance(program.schedule, GpuSchedule)
        self.schedule, self.batch_dims = program.schedule, batch_dims
        self.tile = I_FIRST if self.schedule.form == "dot" else I_LAST
        self.program = program = everywhere(program)  # masked tiles leave out what is not inside
        self.fallback = fallback
        self.walk = WALKS[program.pattern]
        self.data, self.half = dtype, dtype in ("float16", "bfloat16")
        real = "float32" if self.half else dtype
        self.types = Types(f"tl.{real}", f"tl.{dtype_acc}", f"tl.int{self.schedule.index_bits}", self._component)
        self.inputs = {each.position: each for each in program.inputs}
        self.fields = {each.name: each for each in program.fields}
        self.names = Names([*_WORDS, *self.walk.params, *self.walk.words, *(_PATTERN_WORDS if program.pattern else ())])
        self.input_names = {x.position: self.names.claim(x.name) for x in program.inputs}
        self.params = self._all_params()
        self.wide = self._wide_pieces()
        self.held = _held(program) - {name for name, _ in self.wide}
        self.acc_names = self._accumulators("")
        self.other_names = self._accumulators("other_")
        self.folded = [s.value for s in (*program.update, *program.refine)]
        self.folded += [x for x in (program.guard, program.screen) if x]
        self.columns = {axis: Columns(axis, self.inputs) for axis in "ij"}
        self._collect()
        self.rows = self._rows()
        self.row_names: dict[Value, str] = {}
        made = repr((program.title, str(self.schedule), dtype, dtype_acc, batch_dims)) + program.pattern
        digest = hashlib.sha256(made.encode())
        word = re.search(r"(\w+)_Reduction", program.title)
        self.stem = f"{word[1].lower() if word else 'reduction'}_{digest.hexdigest()[:8]}"

    # What is where ----------------------------------------------------------------------------------------------------

    def _component(self, load: Value) -> str:
        return f"{self.input_names[load.attr[0]]}_{load.attr[1]}"

    def _all_params(self) -> list[Param]:
        """Every parameter a function may have, in the order that it has them."""
        found = []
        for x in self.program.inputs:
            name = self.input_names[x.position]
            found.append(Param(name, "data", x.position))
            if x.axis:
                found.append(Param(self.names.claim(f"{name}_row"), "row", x.position))
            for d in range(self.batch_dims):
                found.append(Param(self.names.claim(f"{name}_batch{d}"), "batch", x.position, d))
        found += [Param(self.names.claim(f"size_{d}"), "size", batch=d) for d in range(1, self.batch_dims)]
        return found + [Param(word, word) for word in (*_TABLES, *self.walk.params, "M", "N", "part", "splits")]

    def _collect(self) -> None:
        """Settle what is packed."""
        if self.schedule.packed:
            self.columns["j"].collect(self.folded)
            self.columns["i"].collect(self.folded if self.walk.aligned else [], looped=True)

    def _wide_pieces(self) -> dict[tuple[str, int], int]:
        """Accumulators of several components in one tensor: where each begins in its field, and how many it has."""
        return {}

    def _accumulators(self, prefix: str) -> dict[tuple[str, int], str]:
        """Variables for the accumulators that are kept in registers."""
        found = {}
        for each in self.program.fields:
            for k in range(0 if each.name in self.held else each.size):
                if not any(each.name == name and start < k < start + n for (name, start), n in self.wide.items()):
                    stem = prefix + (each.name if each.size == 1 else f"{each.name}_{k}")
                    found[each.name, k] = self.names.claim(stem)
        return found

    def _rows(self) -> list[Value]:
        """What the prologue keeps in registers for the loop: computed from i and parameters alone."""
        found: dict[Value, None] = {}
        seen: set[Value] = set()
        stack = list(reversed(self.folded))
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if self._packed(value) is not None or value.op in ("const", "count_j", "number"):
                continue
            if value.hoisted and not value.indices:
                found[value] = None
            else:
                stack.extend(reversed(self.read(value)))
        return list(found)

    def read(self, value: Value) -> Sequence[Value]:
        """What the statement of a value reads."""
        return value.args

    def _packed(self, value: Value) -> tuple[str, str] | None:
        """The axis and the column where a value is packed."""
        for axis, columns in self.columns.items():
            column = columns.column(value)
            if column is not None:
                return axis, column
        return None

    # The module -------------------------------------------------------------------------------------------------------

    def module(self) -> Module:
        kernels: dict[str, tuple[str, list[str], tuple[Param, ...]]] = {}
        shared: list[str] = []
        body = self._reduce_prologue()
        for build in (self._fold, self._refine, self._merge_two, self._finish):
            shared += build()
        for role, make in self._tables().items():
            kernels[role] = self._kernel(role, make())
        kernels["reduce"] = self._kernel("reduce", self._reduce(body))
        if not self.program.pattern:
            kernels["merge"] = self._kernel("merge", self._merge())
        texts = [line for name in kernels for line in kernels[name][1]]
        order = [*self._header(shared + texts), *shared, *texts]
        return Module(
            "\n".join(order).rstrip("\n") + "\n",
            {name: kernel[0] for name, kernel in kernels.items()},
            {name: kernel[2] for name, kernel in kernels.items()},
            self._widths(),
            self._size(index=False),
            self._size(index=True),
            bool(self.held),
        )

    def _tables(self) -> dict[str, Callable[[], Function]]:
        """The kernels that prepare tables, by role."""
        return {f"pack_{axis}": partial(self._pack, axis) for axis in "ij" if self.columns[axis].size}

    def _widths(self) -> dict[str, int]:
        """Columns of the tables, by the parameter that points to each."""
        return {f"packed_{axis}": columns.size for axis, columns in self.columns.items()}

    def _header(self, lines: Sequence[str]) -> list[str]:
        s = self.schedule
        code = Function(list(lines))
        axes = {"i": "rows i", "j": "rows j", "": "a parameter"}
        described = [
            f"{self.input_names[x.position]}: {axes[x.axis]} of {x.dim} component{'s' * (x.dim > 1)}"
            for x in self.program.inputs
        ]
        described += [f"pattern: {self.program.pattern}"] if self.program.pattern else []
        title = self.program.title.replace("\\", "\\\\").replace('"""', "'''")
        sizes = {
            "BLOCK_I": s.block_i, "BLOCK_J": s.block_j, "BLOCK_SUM": s.block_sum, **self._sizes(),
            "FLOATS": self._size(index=False), "INDICES": self._size(index=True), "INF": 'float("inf")',
        }  # fmt: skip
        imports = {module: [name for name in names if code.uses(name)] for module, names in MODULES.items()}
        library = [
            f"from tritonkeops.backends.triton.{module} import {', '.join(names)}"
            for module, names in imports.items()
            if names
        ]
        constants = [f"{name} = tl.constexpr({value})" for name, value in sizes.items() if code.uses(name)]
        return [
            f'"""{title}', "", *described, f"schedule: {s}", '"""', "", "import triton", "import triton.language as tl",
            *([""] if library else []), *library, "", *constants, "", "",
        ]  # fmt: skip

    def _sizes(self) -> dict[str, object]:
        """Constants of the module."""
        return {f"COLUMNS_{axis.upper()}": columns.size for axis, columns in self.columns.items()}

    def _kernel(self, role: str, body: Function) -> tuple[str, list[str], tuple[Param, ...]]:
        """A kernel around a body: the parameters that it uses."""
        axis = role.rpartition("_")[2]
        blocks = _PACK_BLOCKS.format(*AXES[axis]) if axis in AXES else self.walk.blocks
        unless = self.unless(role)
        skipped = [f"    if {unless}:", "        return"] if unless else []
        function = Function([*skipped, *self._head(body, blocks), *body.lines])
        name = self.stem if role == "reduce" else f"{self.stem}_{role}"
        params = tuple(p for p in self.params if function.uses(p.name))
        self._prune(function)
        constant = ["SPLIT: tl.constexpr"] if role == "reduce" and not self.program.pattern else []
        return name, define(name, [*(p.name for p in params), *constant], function), params

    def unless(self, role: str) -> str:
        """The condition under which a kernel has nothing to do."""
        return "tl.load(far) == 0" if self.fallback else ""

    def _size(self, index: bool) -> int:
        return sum(field.size for field in self.program.fields if field.index is index)

    # Functions --------------------------------------------------------------------------------------------------------

    def _scope(self, function: Function, mode: Mode, known: dict[Value, str] | None = None) -> TileScope:
        scope = self.scope(
            function, Names(self.names.taken), self.types, known or {}, lambda v: self._leaf(v, mode),
            lambda v: self._shape(v, mode),
        )  # fmt: skip
        scope.emitter, scope.mode = self, mode
        return scope

    def _shape(self, value: Value, mode: Mode) -> str:
        if mode.word == "pack":
            return f"[{PACK_ROWS if mode.axis in value.axes else 1}]"
        tall = "j" in value.axes and mode.word != "row"
        wide = value.axes & {"i", "tile"}
        return self.tile.shape("BLOCK_I" if wide else "1", "BLOCK_J" if tall else "1")

    def _leaf(self, value: Value, mode: Mode) -> str | None:
        """How a function reads what it does not compute."""
        if value.op == "count_j":
            return self.walk.count
        if value.op == "index_j":
            return "rows"
        if value.op == "tile_j":
            return "j"
        if value.op == "acc":
            return self._read_acc(value)
        packed = self._packed(value) if mode.word != "pack" else None
        if packed:
            return self._read_packed(*packed, mode)
        return self._read_input(value, mode) if value.op == "load" else None

    def _read_acc(self, value: Value) -> str:
        which, name, k = value.attr
        if name in self.held or (which == "b" and self.program.merge_over):
            place = {"a": "held", "b": "other"}[which] + ("_index" if self.fields[name].index else "")
            return f"tl.load({row_of(place, self._place(self.fields[name], k), 'BLOCK_I', 'col')})"
        return (self.acc_names if which == "a" else self.other_names)[name, first_of(k)]

    def _place(self, each: Field, k: Any) -> str:
        """Where component k of a field is among the accumulator's floats or indices."""
        before = 0
        for other in self.program.fields:
            if other.name == each.name:
                break
            before += other.size if other.index is each.index else 0
        position = text_of(k, each.size)
        return str(before + k) if isinstance(k, int) else added(str(before), position)

    def _read_packed(self, axis: str, column: str, mode: Mode) -> str:
        if axis == "i":
            return f"tl.load({row_of('mine', column, 'BLOCK_I', 'col')})"
        text = f"tl.load({row_of('tile', column, 'BLOCK_J', 'u' if mode.word == 'row' else 'lane')})"
        return f"{text}[{self.tile.along_j}]" if mode.word == "tile" else text

    def _read_input(self, load: Value, mode: Mode) -> str:
        source, k = self.inputs[load.attr[0]], load.attr[1]
        name, component = self.input_names[source.position], text_of(k, source.dim)
        cast = ".to(tl.float32)" if self.half else ""
        if not source.axis:
            return f"tl.load({added(name, component)}){cast}"
        row = "row" if (source.axis, mode.word) == ("j", "row") else f"row_{source.axis}"
        text = f"tl.load({added(f'{name} + {row} * {name}_row', component)}){cast}"
        tall = source.axis == "j" and mode.word == "tile" and not load.by_row
        return f"{text}[{self.tile.along_j}]" if tall else text

    # Packing ----------------------------------------------------------------------------------------------------------

    def _pack(self, axis: str) -> Function:
        """What depends on one axis alone, tile by tile: (tiles, columns, rows of a tile)."""
        f, size = self._open_table(f"packed_{axis}", axis, "COLUMNS"), AXES[axis][1]
        scope = self._scope(f, Mode("pack", axis))
        columns = self.columns[axis]
        plain = [value for value in columns.values if not value.indices]
        scope.require(plain)
        for value in plain:
            self._store_column(f, columns.values[value], scope.expr(value), size)
        for value in columns.values:
            for k in value.indices:
                scope.open(k)
                scope.require([value])
                self._store_column(f, added(str(columns.values[value]), str(k)), scope.expr(value), size)
                scope.close(k)
        for position, start in columns.whole.items():
            source = self.inputs[position]
            f.line(f"for k in range({source.dim}):")
            f.depth += 1
            load = Value("load", (), (position, Index("k", source.dim)), FLOAT, frozenset(axis))
            self._store_column(f, added(str(start), "k"), self._read_input(load, Mode("pack", axis)), size)
            f.depth -= 1
        return f

    def _open_table(self, table: str, axis: str, columns: str) -> Function:
        """The rows that a program writes to a table, and where they are in its tiles."""
        f = Function()
        length, size = AXES[axis]
        if self.batch_dims:
            f.line(f"{table} += entry * {table}_batch")
        f.line(f"first = block.to(tl.int64) * {PACK_ROWS} + tl.arange(0, {PACK_ROWS})")
        f.line(f"row_{axis} = tl.minimum(first, {length} - 1)  # the last tile is filled up with the last row")
        f.line(f"tile = {table} + first // {size} * {size} * {columns}_{axis.upper()} + first % {size}")
        f.line(f"valid = first < tl.cdiv({length}, {size}) * {size}")
        return f

    def _store_column(self, f: Function, column: int | str, text: str, size: str) -> None:
        f.line(f"tl.store({row_of('tile', str(column), size)}, {text}, mask=valid)")

    def _head(self, body: Function, blocks: str) -> list[str]:
        """The block of rows that a program works on; with batches, its entry, and where that entry's data are."""
        f = Function()
        if not self.batch_dims:
            f.line("block = tl.program_id(0)")
            return f.lines
        f.line(f"blocks = {blocks}")
        f.line("block = tl.program_id(0) % blocks")
        f.line("entry = (tl.program_id(0) // blocks).to(tl.int64)")
        entries = ["entry"]
        read = any(body.uses(self.input_names[x.position]) for x in self.program.inputs)
        for d in range(self.batch_dims - 1 if read else 0, 0, -1):
            f.line(f"entry_{d} = {entries[0]} % size_{d}")
            f.line(f"rest_{d} = {entries[0]} // size_{d}")
            entries = [f"rest_{d}", f"entry_{d}", *entries[1:]]
        for x in self.program.inputs:
            name = self.input_names[x.position]
            steps = [p.name for p in self.params if p.role == "batch" and p.input == x.position]
            if body.uses(name):
                f.line(f"{name} += {' + '.join(f'{e} * {s}' for e, s in zip(entries, steps, strict=True))}")
        for output in self.program.outputs:
            if body.uses(output.name):
                f.line(f"{output.name} += entry * M * {output.dim}")
        return f.lines

    def _wide(self, text: str) -> str:
        """A number of a block, wide enough to count rows with."""
        return f"{text}.to(tl.int64)" if self.schedule.index_bits == 64 else text

    # A tile of j into the accumulators --------------------------------------------------------------------------------

    def _fold(self) -> list[str]:
        f = Function()
        scope = self._scope(f, Mode("tile"), self.row_names)
        if self.program.guard:
            self._guarded(f, scope)
            what = "Fold rows j to j + BLOCK_J into sorted lists: test them all, insert those that some column wants."
        else:
            self._open_tile(f)
            self._update(f, scope, self.program.update)
            what = "Fold rows j to j + BLOCK_J into the accumulators."
        self._prune(f)
        passed = self._passed(f, ["row_i", *self._moving(), "held", "held_index", "mine", *self.walk.words])
        self.fold_args = ["j", *self.acc_names.values(), *passed]
        return define("fold", [*self.fold_args, "MASKED: tl.constexpr"], f, what)

    def _moving(self) -> dict[str, tuple[str, str]]:
        """Pointers that move from tile to tile: the table that each begins at, and the columns of that."""
        return {"tile": ("packed_j", "COLUMNS_J")}

    def _passed(self, f: Function, words: Iterable[str]) -> list[str]:
        """Which of the caller's variables a function's body reads."""
        rows = [name for name in dict.fromkeys(self.row_names.values()) if f.uses(name)]
        words = [*words, *(p.name for p in self.params)]
        return [*rows, *(word for word in words if f.uses(word))]

    def _open_tile(self, f: Function) -> None:
        """Variables of a tile of j; what the body turns out not to read goes again (_prune)."""
        f.line(self.tile.columns)
        f.line("lane = tl.arange(0, BLOCK_J)")
        self._lines(f, self.walk.tile)

    def _lines(self, f: Function, lines: Iterable[str]) -> None:
        for line in lines:
            line = line.replace("ALONG_I", self.tile.along_i).replace("ALONG_J", self.tile.along_j)
            f.line(line.replace("INDEX", self.types.index))

    def _far(self, text: str) -> str:
        """An offset beyond 31 bits."""
        return text if self.schedule.index_bits == 64 else f"tl.cast({text}, tl.int64)"

    def _prune(self, f: Function) -> None:
        """Drop variables that nothing reads."""
        for name in ("row", "row_i", "row_j", "rows", "valid", "tile", "listed_j", "lane", "col", "count_j"):
            others = [line for line in f.lines if not line.strip().startswith(f"{name} = ")]
            if not Function(others).uses(name):
                f.lines = others

    def _update(self, f: Function, scope: TileScope, stores: Sequence[Store]) -> None:
        """New accumulators from old ones: those in registers are returned, those in memory stored."""
        plain, looped = by_counter(stores)
        scope.require([s.value.args[1] if _is_spread(s) else s.value for s in plain])
        results = [self._result(scope, s) for s in plain]
        kept = [s for s in plain if s.target not in self.held]
        for store, text in zip(plain, results, strict=True):
            if store.target in self.held:
                self._store_acc(f, store, text)
        texts = {(s.target, s.position): results[plain.index(s)] for s in kept}
        for k, group in looped.items():
            scope.require([s.value for s in group])
            self.open(scope, k)
            scope.require([s.value for s in group])
            for store in group:
                key = store.target, first_of(store.position)
                if key in self.wide:
                    texts[key] = scope.expr(store.value)
                else:
                    self._store_acc(f, store, scope.expr(store.value))
            self.close(scope, k)
        if self.held:
            f.line("tl.debug_barrier()  # the next tile reads what this one has stored")
        if texts:
            f.line(f"return {', '.join(texts[key] for key in self.acc_names)}")

    def open(self, scope: TileScope, k: Index) -> None:
        """Begin what is stored for each value of a counter."""
        scope.open(k)

    def close(self, scope: TileScope, k: Index) -> None:
        scope.close(k)

    def within(self, k: Position) -> str:
        """Where a store of that position is one of a component, as an addition to its mask."""
        return ""

    def _result(self, scope: TileScope, store: Store) -> str:
        if not _is_spread(store):
            return scope.expr(store.value)
        acc, term = store.value.args
        if term not in scope.named and term.op != "const":
            scope.name(term, scope.expr(term))
        return f"{scope.expr(acc)} + ({scope.masked(term, '0.0', summed=True)})"

    def _store_acc(self, f: Function, store: Store, text: str, mask: str = "") -> None:
        each = self.fields[store.target]
        place = "held_index" if each.index else "held"
        f.line(f"tl.store({row_of(place, self._place(each, store.position), 'BLOCK_I', 'col')}, {text}{mask})")

    def _guarded(self, f: Function, scope: TileScope) -> None:
        """Test the best pair of the tile first; then insert, one by one, the rows j that some column wants."""
        program = self.program
        assert program.guard is not None and program.screen is not None
        self._open_tile(f)
        scope.require([program.screen])
        f.lines = [line for line in f.lines if "rows = " not in line]
        f.line(f"if tl.max({scope.expr(program.screen, 9)}.to(tl.int32)) > 0:")
        f.depth += 1
        f.line(f"count = tl.minimum({self.walk.stop} - j, BLOCK_J) if MASKED else BLOCK_J")
        f.line(f"for u in range({self.walk.start}, count):")
        f.depth += 1
        known = {v: n for v, n in scope.named.items() if not v.by_j}
        row = self._scope(f, Mode("row"), {**self.row_names, **{v: n for v, n in known.items() if v.hoisted}})
        row.names = scope.names
        self._lines(f, self.walk.row)
        row.require([program.guard], later=[s.value for s in program.update])
        wanted = f"({row.expr(program.guard, 4)} & inside)" if self._masks() else row.expr(program.guard, 9)
        f.line(f"if tl.max({wanted}.to(tl.int32)) > 0:")
        f.depth += 1
        self._insert(f, row)
        f.depth = 1
        if self.acc_names:
            f.line(f"return {', '.join(self.acc_names.values())}")

    def _masks(self) -> bool:
        """Whether a single row j may count for some of the rows i only."""
        return self.program.pattern in MASKED

    def _insert(self, f: Function, scope: TileScope) -> None:
        mask = ", mask=inside" if self._masks() else ""
        plain, looped = by_counter(self.program.update)
        scope.require([s.value for s in self.program.update])
        names = []
        for store in plain:
            if store.value not in scope.named:
                scope.name(store.value, scope.expr(store.value))
            names.append(scope.named[store.value])
        for k, group in looped.items():
            scope.open(k)
            scope.require([s.value for s in group])
            texts = [scope.expr(s.value) for s in group]
            for store, text in zip(group, texts, strict=True):
                self._store_acc(f, store, text, mask)
            scope.close(k)
        for store, name in zip(plain, names, strict=True):
            if store.target in self.held:
                self._store_acc(f, store, name, mask)
            else:
                old = self.acc_names[store.target, store.position]  # type: ignore[index]
                f.line(f"{old} = tl.where(inside, {name}, {old})" if mask else f"{old} = {name}")
        if self.held:
            f.line("tl.debug_barrier()")

    # After the loop ---------------------------------------------------------------------------------------------------

    def _refine(self) -> list[str]:
        """Rows for tiles: each column looks once more at the tile that holds its best value."""
        if not self.program.refine:
            return []
        f = Function()
        (store,) = self.program.refine
        (x,) = store.value.args
        *value, name = self._refined()
        best = value[0] if value else "best"
        worst, sign = ("INF", "<") if store.value.op == "argmin_j" else ("-INF", ">")
        f.line(f"j = tl.maximum({name}, 0)")
        f.line(f"tile = packed_j + {self._far('j')} * COLUMNS_J")
        f.line(self.tile.columns)
        f.line(f"{best} = tl.full({self.tile.shape('BLOCK_I', '1')}, {worst}, {self.types.of(x)})")
        f.line("for u in range(tl.minimum(N, BLOCK_J)):")
        f.depth += 1
        f.line("rows = j + u")
        f.line("row = tl.minimum(rows, N - 1)")
        scope = self._scope(f, Mode("row"), self.row_names)
        scope.require([x])
        f.line(f"wins = ({scope.exact(x, 2)} {sign} {best}) & (rows < N)")
        f.line(f"{best} = tl.where(wins, {scope.exact(x)}, {best})")
        f.line(f"{name} = tl.where(wins, rows, {name})")
        f.depth -= 1
        f.line(f"return {', '.join(self._refined())}")
        self._prune(f)
        self.refine_args = [name, *self._passed(f, ["row_i", "mine"])]
        return define("refine", self.refine_args, f, "The first row with the best value, in the tile that holds it.")

    def _refined(self) -> list[str]:
        """What `refine` gives: rows, after values where the loop had approximate ones."""
        return [self.acc_names[store.target, store.position] for store in self.program.refine]  # type: ignore[index]

    def _merge_two(self) -> list[str]:
        """Join accumulators: those of parts of j, or of blocks of a sum."""
        if self.program.pattern and not self._blocks():
            return []
        f = Function()
        scope = self._scope(f, Mode("row"))
        if self.held or self.program.merge_over:
            f.line(self.tile.columns)
        if self.program.merge_over:
            scope.opened |= {self.program.merge_over}
        self._update(f, scope, self.program.merge)
        counter = [str(self.program.merge_over)] if self.program.merge_over else []
        names = [*self.acc_names.values(), *self.other_names.values()]
        words = ["held", "held_index", "other", "other_index"]
        self.merge_args = [*counter, *(word for word in (*names, *words) if f.uses(word))]
        return define("merge_two", self.merge_args, f, "Join accumulators; the other's rows j come after ours.")

    def _finish(self) -> list[str]:
        """Results of the rows i of a block."""
        f = Function()
        f.line(f"row_i = tl.minimum(i, {self.walk.last} - 1)")
        f.line(self.tile.columns)
        scope = self._scope(f, Mode("row"))
        plain, looped = by_counter(self.program.finish)
        scope.require([s.value for s in self.program.finish])
        dims = {output.name: output.dim for output in self.program.outputs}

        def write(store: Store) -> None:
            dim = dims[store.target]
            place = added(f"{store.target} + i" + (f" * {dim}" if dim > 1 else ""), text_of(store.position, dim))
            mask = f"i < {self.walk.last}"
            mask = f"({mask}) & {inside}" if (inside := self.within(store.position)) else mask
            f.line(f"tl.store({place}, {scope.expr(store.value)}, mask={mask})")

        for store in plain:
            write(store)
        for k, group in looped.items():
            self.open(scope, k)
            scope.require([s.value for s in group])
            for store in group:
                write(store)
            self.close(scope, k)
        self._prune(f)
        names = [name for name in self.acc_names.values() if f.uses(name)]
        words = ["held", "held_index", *self.walk.words, *(p.name for p in self.params)]
        self.finish_args = ["i", *names, *(word for word in words if f.uses(word))]
        return define("finish", self.finish_args, f, "Write the results of rows i.")

    # Kernels ----------------------------------------------------------------------------------------------------------

    def _reduce_prologue(self) -> Function:
        """The part of `reduce` before the loop; it also settles how the prologue's values are called."""
        f = Function()
        self._lines(f, (line.replace("{block}", self._wide("block")) for line in self.walk.rows))
        if self.columns["j"].size and self.batch_dims:
            f.line("packed_j += entry * packed_j_batch")
        if self.columns["i"].size:
            batch = "entry * packed_i_batch + " if self.batch_dims else ""
            f.line(f"mine = packed_i + {batch}block.to(tl.int64) * COLUMNS_I * BLOCK_I")
            f.line(self.tile.columns)
        scope = self._scope(f, Mode("row"))
        scope.require(self.rows)
        for value in self.rows:
            if value not in scope.named:
                scope.name(value, scope.expr(value))
        self.row_names = {value: scope.named[value] for value in self.rows}
        self.names = Names(self.names.taken | set(self.row_names.values()))
        return f

    def _reduce(self, f: Function) -> Function:
        return self._reduce_pattern(f) if self.program.pattern else self._reduce_all(f)

    def _reduce_pattern(self, f: Function) -> Function:
        """The loops over the rows j of a pattern; a program sees all those of its rows i."""
        if self.held:
            self._open_held(f)
        blocks = self._blocks()
        self._start(f, self.acc_names, spread=not blocks)
        counted = self.walk.spans and "count_j" in self.finish_args
        if counted:
            f.line(f"count_j = tl.zeros({self.tile.shape('BLOCK_I', '1')}, {self.types.index})")
        if self.walk.spans:
            f.line("for span in range(tl.load(table + 4 * block + 2), tl.load(table + 4 * block + 3)):")
            f.depth += 1
        self._lines(f, self.walk.bounds)
        if counted:
            f.line("count_j += stop - begin")
        for start, stop, masked in self.walk.segments:
            self._segment(f, start, stop, str(masked), blocks)
        f.depth = 1
        if not blocks:
            self._collapse(f, self.acc_names)
        f.line(f"finish({', '.join(self.finish_args)})")
        self._prune(f)
        return f

    def _blocks(self) -> bool:
        """Whether sums are made in blocks."""
        return self.schedule.block_sum > 0 and not self.held

    def _segment(self, f: Function, start: str, stop: str, masked: str, blocks: bool) -> None:
        if not blocks:
            self._tiles(f, start, stop, self.acc_names, masked)
            return
        f.line(f"for first in range({start}, {stop}, BLOCK_SUM):  # partial sums keep rounding errors small")
        f.depth += 1
        self._start(f, self.other_names, spread=True)
        self._tiles(f, "first", f"tl.minimum(first + BLOCK_SUM, {stop})", self.other_names, masked)
        self._collapse(f, self.other_names)
        f.line(f"{', '.join(self.acc_names.values())} = merge_two({', '.join(self.merge_args)})")
        f.depth -= 1

    def _reduce_all(self, f: Function) -> Function:
        f.line("begin = tl.program_id(1) * part if SPLIT else 0")
        f.line("end = tl.minimum(begin + part, N) if SPLIT else N")
        f.line("full = begin + (end - begin) // BLOCK_J * BLOCK_J")
        for pointer, (table, columns) in self._moving().items():
            if pointer in self.fold_args:
                f.line(f"{pointer} = {table} + {self._far('begin')} * {columns}")
        if self.held:
            self._open_held(f)
        if self._blocks():
            self._nest(f)
        else:
            self._start(f, self.acc_names, spread=True)
            self._tiles(f, "begin", "full", self.acc_names)
            f.line("if full < end:")
            f.line(f"    {self._call_fold('full', self.acc_names, 'True')}")
            self._collapse(f, self.acc_names)
        if self.program.refine:
            f.line(f"{', '.join(self._refined())} = refine({', '.join(self.refine_args)})")
        finish = f"finish({', '.join(self.finish_args)})"
        if not self.acc_names:
            f.line("if not SPLIT:")
            f.line(f"    {finish}")
            return f
        f.line("if SPLIT:")
        f.depth += 1
        if not self.held:
            self._slot(f, "tl.program_id(1)")
            f.line(self.tile.columns)
        for (name, k), variable in self.acc_names.items():
            each = self.fields[name]
            pointer = "parts_index + slot * INDICES" if each.index else "parts + slot * FLOATS"
            place = self.part_of(f"{pointer} * BLOCK_I", each, k)
            f.line(f"tl.store({place}, {variable}{self.columns_within(name, k)})")
        f.depth -= 1
        f.line("else:")
        f.line(f"    {finish}")
        return f

    def _slot(self, f: Function, split: str) -> None:
        f.line(f"slot = {split}.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)")

    def _open_held(self, f: Function) -> None:
        """Accumulators in memory: a slot of the workspace for each program."""
        self._slot(f, "tl.program_id(1)")
        f.line(self.tile.columns)
        kinds = {self.fields[name].index for name in self.held}
        if False in kinds:
            f.line("held = parts + slot * FLOATS * BLOCK_I")
        if True in kinds:
            f.line("held_index = parts_index + slot * INDICES * BLOCK_I")
        for each in self.program.fields:
            if each.name in self.held:
                k = Index("k", each.size)
                kind = self.types.index if each.index else self.types.acc
                f.line(f"for k in range({each.size}):")
                place = "held_index" if each.index else "held"
                initial = f"tl.full({self.tile.shape('BLOCK_I', '1')}, {_identity(each)}, {kind})"
                f.line(f"    tl.store({row_of(place, self._place(each, k), 'BLOCK_I', 'col')}, {initial})")
        f.line("tl.debug_barrier()")

    def _start(self, f: Function, names: dict[tuple[str, int], str], spread: bool) -> None:
        """Empty accumulators."""
        for (name, k), variable in names.items():
            each = self.fields[name]
            tall = "BLOCK_J" if spread and name in self.program.spread else "1"
            kind = self.types.index if each.index else self.types.acc
            tall = self.length_of(name, k) or tall
            f.line(f"{variable} = tl.full({self.tile.shape('BLOCK_I', tall)}, {_identity(each)}, {kind})")

    def _tiles(
        self, f: Function, start: str, stop: str, names: dict[tuple[str, int], str], masked: str = "False"
    ) -> None:
        f.line(f"for j in range({start}, {stop}, BLOCK_J):")
        if self.program.pattern and "tile" in self.fold_args:
            f.line(f"    tile = packed_j + {self._far('j')} * COLUMNS_J")
        f.line(f"    {self._call_fold('j', names, masked)}")
        for pointer, (_, columns) in self._moving().items():
            if not self.program.pattern and pointer in self.fold_args:
                f.line(f"    {pointer} += BLOCK_J * {columns}")

    def _call_fold(self, j: str, names: dict[tuple[str, int], str], masked: str) -> str:
        replaced = {self.acc_names[key]: name for key, name in names.items()} | {"j": j}
        args = ", ".join(replaced.get(name, name) for name in self.fold_args)
        results = f"{', '.join(names.values())} = " if names else ""
        return f"{results}fold({args}, {masked})"

    def _collapse(self, f: Function, names: dict[tuple[str, int], str]) -> None:
        for (name, _), variable in names.items():
            if name in self.program.spread:
                f.line(f"{variable} = tl.sum({variable}, {self.tile.over_j})")

    def _nest(self, f: Function) -> None:
        """Blocks of BLOCK_SUM rows j have accumulators of their own: partial sums keep rounding errors small."""
        merged = f"{', '.join(self.acc_names.values())} = merge_two({', '.join(self.merge_args)})"
        self._start(f, self.acc_names, spread=False)
        self._segment(f, "begin", "full", "False", blocks=True)
        f.line("if full < end:")
        f.depth += 1
        self._start(f, self.other_names, spread=True)
        f.line(self._call_fold("full", self.other_names, "True"))
        self._collapse(f, self.other_names)
        f.line(merged)
        f.depth -= 1

    def _merge(self) -> Function:
        """Join the accumulators of the parts of j, in their order, and finish."""
        f = Function()
        f.line(f"i = {self._wide('block')} * BLOCK_I + tl.arange(0, BLOCK_I)[{self.tile.along_i}]")
        f.line(self.tile.columns)
        f.line("slot = tl.program_id(0).to(tl.int64)")
        places = [("", "parts", "FLOATS", False), ("_index", "parts_index", "INDICES", True)]
        for suffix, base, size, index in places:
            if self._size(index):
                f.line(f"held{suffix} = {base} + slot * {size} * BLOCK_I")
        for (name, k), variable in self.acc_names.items():
            place = self.part_of(self._slot_of("held", name), self.fields[name], k)
            f.line(f"{variable} = tl.load({place}{self.columns_within(name, k)})")
        f.line("for split in range(1, splits):")
        f.depth += 1
        f.line("slot += tl.num_programs(0)")
        for suffix, base, size, index in places:
            if self._size(index):
                f.line(f"other{suffix} = {base} + slot * {size} * BLOCK_I")
        over = self.program.merge_over
        if over:
            f.line(f"for {over} in range({over.size}):")
            f.depth += 1
        else:
            for (name, k), variable in self.other_names.items():
                place = self.part_of(self._slot_of("other", name), self.fields[name], k)
                f.line(f"{variable} = tl.load({place}{self.columns_within(name, k)})")
        results = f"{', '.join(self.acc_names.values())} = " if self.acc_names else ""
        f.line(f"{results}merge_two({', '.join(self.merge_args)})")
        f.depth = 1
        f.line(f"finish({', '.join(self.finish_args)})")
        return f

    def part_of(self, base: str, each: Field, k: int) -> str:
        """Where an accumulator stands among the parts of j."""
        return row_of(base, self._place(each, k), "BLOCK_I", "col")

    def columns_within(self, name: str, k: int) -> str:
        """The mask with which it is stored and loaded."""
        return ""

    def length_of(self, name: str, k: int) -> str:
        """Components that an accumulator's tensor has room for; "" for a single one."""
        return ""

    def _slot_of(self, stem: str, name: str) -> str:
        return stem + ("_index" if self.fields[name].index else "")


def _of_one_axis(value: Value) -> bool:
    return value.type == FLOAT and "tile" not in value.axes and not {"i", "j"} <= value.axes


def _is_spread(store: Store) -> bool:
    return store.value.op == "add" and "j" in store.value.args[0].axes and store.value.args[0].op == "acc"


def _held(program: TileProgram) -> frozenset[str]:
    """Accumulators in memory: those that loops over components read or write."""
    stored = {s.target for s in (*program.update, *program.merge) if not isinstance(s.position, int)}
    stores = (*program.update, *program.merge, *program.finish)
    roots = [s.value for s in stores] + ([program.guard] if program.guard else [])
    read = {v.attr[1] for v in topological(roots) if v.op == "acc" and v.attr[0] == "a" and indices_of(v.attr[2])}
    return frozenset(stored | read)


def row_of(base: str, row: str, length: str, place: str = "0") -> str:
    """Where a place of a row of a table is."""
    row = row if row.isidentifier() or row.isdigit() else f"({row})"
    return added(added(base, {"0": "0", "1": length}.get(row, f"{row} * {length}")), place)


def _identity(each: Field) -> str:
    if each.index:
        return str(int(each.identity))
    return {"inf": "INF", "-inf": "-INF", "nan": NAN}.get(str(each.identity), str(each.identity))


def define(name: str, params: Sequence[str], function: Function, doc: str = "") -> list[str]:
    lines = ["@triton.jit", *_wrapped(f"def {name}(", params, "):")]
    return [*lines, *([f'    """{doc}"""'] if doc else []), *function.lines, "", ""]


def _wrapped(head: str, words: Sequence[str], tail: str) -> list[str]:
    """A definition's line, broken where it is long."""
    line = head + ", ".join(words) + tail
    if len(line) <= 120:
        return [line]
    lines, current = [head], "    "
    for word in words:
        if len(current) + len(word) > 118:
            lines.append(current.rstrip())
            current = "    "
        current += f"{word}, "
    return [*lines, current.rstrip(), tail]
