"""Tile IR -> C: rows i in the lanes of an inner loop that the compiler vectorises, everything else plain loops.

Every loop over lanes is scalar code marked `omp simd`. Values that cross from one such loop to another live in small
arrays of `width` lanes, which gcc and clang keep in vector registers. The text is meant to be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np

from tritonkeops.formula.ir import rounded
from tritonkeops.tile.accumulate import everywhere
from tritonkeops.tile.ir import (
    BOOL,
    COMPONENT_LOOPS,
    FLOAT,
    INDEX,
    TILE_REDUCTIONS,
    Index,
    Input,
    Position,
    Store,
    TileProgram,
    Value,
    bounds,
    indices_of,
    topological,
)
from tritonkeops.tile.schedule import CpuSchedule

_INFIX = {
    "add": ("+", 5), "sub": ("-", 5), "mul": ("*", 6), "div": ("/", 6), "lt": ("<", 3), "le": ("<=", 3), "gt": (">", 3),
    "ge": (">=", 3), "eq": ("==", 3), "ne": ("!=", 3), "and": ("&", 1), "or": ("|", 1),
}  # fmt: skip
_PRECEDENCE = {op: level for op, (_, level) in _INFIX.items()} | {
    "neg": 7,
    "not": 7,
    "number": 7,
    "piecewise": 0,
    "where": 0,
    "maximum": 0,
    "minimum": 0,
    "inside": 1,
}
_ATOM = 9
_LEAVES = ("load", "acc", "number", "index_j", "count_j", "inside")
_PATTERN_ROWS = {
    "ranges": ["  idx_t from[LANES], to[LANES];"],
    "band": ["  idx_t from[LANES], to[LANES];"],
    "lists": ["  idx_t from[LANES], to[LANES];", "  const idx_t *list[LANES];"],
}
_RESERVED = frozenset({
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
    "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
    "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "asm",
    "typeof", "unix", "linux", "real", "stride", "Inputs", "Rows", "Acc", "Call", "Task", "Crew", "Scratch", "at_most",
    "inside", "work", "share", "run", "fold_tiles", "tiles_of", "open_tile", "whole_task", "split_task", "merge_task",
    "Pattern", "Fold", "fold_blocks", "close_block", "rows_of", "fold_tile", "pattern_task", "clipped", "from",
    "to", "list",
})  # fmt: skip
_LOCALS = frozenset({
    "in", "r", "begin", "end", "acc", "j", "l", "w", "u", "row", "hit", "wanted", "call", "first", "count", "value",
    "index", "column",
})  # fmt: skip
_INLINE = 48  # expressions used once and no longer than this are written where they are used


def emit(program: TileProgram, dtype: str, dtype_acc: str) -> str:
    """The kernel's C source. `dtype` and `dtype_acc` are "float32" or "float64"."""
    return _Emitter(program, dtype, dtype_acc).text()


class _Emitter:
    def __init__(self, program: TileProgram, dtype: str, dtype_acc: str) -> None:
        assert isinstance(program.schedule, CpuSchedule)
        self.program, self.schedule = program, program.schedule
        self.real, self.acc = _ctype(dtype), _ctype(dtype_acc)
        self.inputs = {each.position: each for each in program.inputs}
        self.names = _identifiers(program.inputs)
        self.used = self._used_inputs()
        self.rows = _boundary(program)

    def _used_inputs(self) -> list[Input]:
        roots = [s.value for s in (*self.program.update, *self.program.finish)]
        positions = {v.attr[0] for v in topological(roots) if v.op == "load"}
        return [self.inputs[p] for p in sorted(positions)]

    def text(self) -> str:
        parts = [self._header(), self._types(), self._bind(), self._prologue(), self._start(), *self._folds()]
        frame = self.program.pattern or "tiles"
        return "\n".join([*parts, self._merge(), self._finish(), f'#include "{frame}.h"\n'])

    def _header(self) -> str:
        p, s = self.program, self.schedule
        axes = {"i": "row i", "j": "row j", "": "parameter"}
        described = [f" *   {self.names[x.position]}: {axes[x.axis]}, {x.dim} components" for x in p.inputs]
        lines = [
            "/* " + p.title.replace("*/", "* /"),
            *described,
            f" * schedule: {s}",
            *([f" * pattern: {p.pattern}"] if p.pattern else []),
            " */",
            '#include "kernel.h"',
            "",
        ]
        lines += [f"typedef {self.real} real;", f"typedef {self.acc} acc_t;", f"typedef int{s.index_bits}_t idx_t;"]
        columns = max(1, sum(x.dim for x in self.used if x.axis == "j"))
        lines.append(
            f"enum {{ LANES = {s.lanes}, WIDTH = {s.width}, UNROLL = {s.unroll}, BLOCK_J = {s.block_sum}, "
            f"INPUTS = {len(p.inputs)}, COLUMNS = {columns} }};\n"
        )
        return "\n".join(lines)

    def _types(self) -> str:
        pointers = [f"  const real *{self.names[x.position]};" for x in self.used]
        strides = [f"    int64_t {self.names[x.position]};" for x in self.used if x.axis]
        strides = ["  struct { /* from one row to the next */", *strides, "  } stride;"] if strides else []
        rows = [f"  real {self.names[x.position]}[{x.dim}][LANES];" for x in self.used if x.axis == "i"]
        for value, name in self.rows.items():
            size = "".join(f"[{k.size}]" for k in value.indices)
            rows.append(f"  real {name}{size}[LANES];")
        rows += _PATTERN_ROWS.get(self.program.pattern, [])
        fields = [f"  {'idx_t' if f.index else 'acc_t'} {f.name}[{f.size}][LANES];" for f in self.program.fields]
        structs = (("Inputs", "where the rows are", pointers + strides), ("Rows", "what depends on i alone", rows),
                   ("Acc", "accumulators", fields))  # fmt: skip
        return "\n".join(_struct(*each) for each in structs)

    def _bind(self) -> str:
        lines = ["static void bind(const Call *call, int64_t entry, Inputs *in) {"]
        lines.append("  const int64_t *offset = call->offset + entry * INPUTS;")
        lines.append("  (void)offset, (void)in;")
        for x in self.used:
            name = self.names[x.position]
            lines.append(f"  in->{name} = (const real *)call->data[{x.position}] + offset[{x.position}];")
            if x.axis:
                lines.append(f"  in->stride.{name} = call->stride[{x.position}];")
        return "\n".join([*lines, "}\n"])

    def _prologue(self) -> str:
        body = _Body(self, lanes="LANES", base="", fills_rows=True)
        lines = ["/* Gather the rows of a tile; lanes beyond its end repeat the last row. */"]
        lines.append(
            "static void prologue(const Inputs *restrict in, int64_t first, int64_t count, Rows *restrict r) {"
        )
        lines.append("  (void)in, (void)first, (void)count, (void)r;")
        for x in self.used:
            if x.axis == "i":
                n = self.names[x.position]
                source = f"in->{n}[(first + at_most(l, count - 1)) * in->stride.{n} + k]"
                lines.append(f"  for (int k = 0; k < {x.dim}; k++)")
                lines.append(f"    for (int l = 0; l < LANES; l++) r->{n}[k][l] = {source};")
        plain = {v: n for v, n in self.rows.items() if not v.indices}
        body.uniform_head(self.rows)
        body.level(list(plain), frozenset(), lambda: [f"r->{n}[l] = {body.expr(v, 0)};" for v, n in plain.items()])
        for value, name in self.rows.items():
            for k in value.indices:
                body.loop(k, [value], lambda v=value, n=name, k=k: [f"r->{n}[{k}][l] = {body.expr(v, 0)};"])  # type: ignore[misc]
        return "\n".join([*lines, *body.indented(), "}\n"])

    def _start(self) -> str:
        lines = ["static void start(Acc *acc) {"]
        for f in self.program.fields:
            value = _constant(f.identity, "idx_t" if f.index else self.acc)
            lines.append(f"  for (int k = 0; k < {f.size}; k++)")
            lines.append(f"    for (int l = 0; l < LANES; l++) acc->{f.name}[k][l] = {value};")
        return "\n".join([*lines, "}\n"])

    def _folds(self) -> list[str]:
        """The fold; for a band one for its edges as well, where it does not hold all pairs of a tile."""
        if self.program.pattern != "band":
            return [self._fold(self.program, "fold", "Fold rows j from `begin` to `end` into the accumulators.")]
        inner = self._fold(everywhere(self.program), "fold", "Fold rows j that the band holds for all lanes.")
        return [inner, self._fold(self.program, "fold_edge", "Fold rows j that the band holds for some of the lanes.")]

    def _fold(self, program: TileProgram, name: str, title: str) -> str:
        signature = "const Inputs *restrict in, const Rows *restrict r, int64_t begin, int64_t end, Acc *restrict acc"
        body = _Body(self)
        values = [s.value for s in program.update] + ([program.guard] if program.guard else [])
        body.line("(void)in, (void)r;")
        body.uniform_head(values)
        body.line("int64_t j = begin;")
        tail, unroll = _Body(self, known=body), self.schedule.unroll
        if program.pattern == "lists" or unroll == 1:  # lists end within a tile: what is beyond is not inside
            self._loop(program, body, unroll, "j < end")
        else:
            self._loop(program, body, unroll, f"j + {unroll} <= end")
            self._loop(program, tail, 1, "j < end")
        lines = body.indented() + tail.indented()
        return "\n".join([f"/* {title} */", f"static void {name}({signature}) {{", *lines, "}\n"])

    def _loop(self, program: TileProgram, body: _Body, unroll: int, condition: str) -> None:
        body.line(f"for (; {condition}; {'j++' if unroll == 1 else f'j += {unroll}'}) {{")
        body.depth += 1
        self._group(program, body, unroll)
        body.depth -= 1
        body.line("}")

    def _group(self, program: TileProgram, body: _Body, unroll: int) -> None:
        """One tile of `unroll` rows j against all lanes, `width` of them at a time."""
        blocked = self.schedule.width < self.schedule.lanes
        body.unroll = unroll
        if program.pattern == "lists":
            body.columns()
        roots = [s.value for s in program.update] + ([program.guard] if program.guard else [])
        body.uniform_level(roots)
        if blocked:
            body.line("for (int w = 0; w < LANES; w += WIDTH) {")
            body.depth += 1
        if program.guard:
            self._guarded(body, program, program.guard, unroll)
        else:
            self._update(body, program.update)
        if blocked:
            body.depth -= 1
            body.line("}")

    def _update(self, body: _Body, stores: Sequence[Store]) -> None:
        """Components stored one by one share a loop over lanes; those of long vectors have a loop of their own."""
        plain = [s for s in stores if isinstance(s.position, int)]
        looped = _by_counter(stores)
        later = [s.value for group in looped.values() for s in group]
        body.level([s.value for s in plain], body.opened, lambda: body.stores(plain), crossing=later)
        for k, group in looped.items():
            body.loop(k, [s.value for s in group], lambda group=group: body.stores(group))  # type: ignore[misc]

    def _guarded(self, body: _Body, program: TileProgram, guard: Value, unroll: int) -> None:
        """Test all pairs of the tile first; insert only the rows j that some lane wants."""
        values = [s.value for s in program.update]
        sources = _sources(values)
        for value in sources:
            body.plan_array(value)
        body.line("int hit = 0;")
        body.level(
            [*sources, guard], frozenset(), pragma="#pragma omp simd reduction(| : hit)",
            sink=lambda: [*body.copies(sources), f"hit |= {body.any(guard, unroll)};"],
        )  # fmt: skip
        body.line(f"for (int u = 0; hit && u < {unroll}; u++) {{")
        body.depth += 1
        body.runtime_u = True
        body.line("int wanted = 0;")
        body.level(
            [guard],
            frozenset(),
            lambda: [f"wanted |= {body.expr(guard, 0)};"],
            pragma="#pragma omp simd reduction(| : wanted)",
        )
        body.line("if (!wanted) continue;")
        if program.pattern != "lists":
            body.line("const idx_t row = (idx_t)(j + u);")
        self._update(body, program.update)
        body.runtime_u = False
        body.depth -= 1
        body.line("}")

    def _merge(self) -> str:
        body = _Body(self, lanes="LANES", base="", acc={"a": "a->", "b": "b->"})
        if self.program.merge_over:
            body.open(self.program.merge_over)
            self._update(body, self.program.merge)
            body.close(self.program.merge_over)
        else:
            self._update(body, self.program.merge)
        title = "/* Join accumulators: b's rows j come after a's. */"
        return "\n".join(
            [title, "static void merge(Acc *restrict a, const Acc *restrict b) {", *body.indented(), "}\n"]
        )

    def _finish(self) -> str:
        signature = "const Call *call, const Inputs *in, const Rows *r, const Acc *acc, int64_t row, int64_t count"
        body = _Body(self, lanes="count", base="", pragma="")
        body.line("(void)in, (void)r, (void)call;")
        body.uniform_head([s.value for s in self.program.finish])
        sizes = {output.name: output.dim for output in self.program.outputs}
        if "value" in sizes:
            body.line(f"real *value = (real *)call->value + row * {sizes['value']};")
        if "index" in sizes:
            body.line(f"int64_t *index = call->index + row * {sizes['index']};")

        def write(stores: Iterable[Store]) -> list[str]:
            return [f"{s.target}[l * {sizes[s.target]} + {s.position}] = {body.expr(s.value, 0)};" for s in stores]

        plain = [s for s in self.program.finish if isinstance(s.position, int)]
        if plain:
            body.level([s.value for s in plain], frozenset(), lambda: write(plain))
        for k, group in _by_counter(self.program.finish).items():
            body.loop(k, [s.value for s in group], lambda group=group: write(group))  # type: ignore[misc]
        title = "/* Results of the first `count` lanes, rows of the output from `row`. */"
        return "\n".join([title, f"static void finish({signature}) {{", *body.indented(), "}\n"])


class _Body:
    """Lines of one function, and where the values computed so far are."""

    def __init__(
        self, kernel: _Emitter, lanes: str = "WIDTH", base: str | None = None, pragma: str = "#pragma omp simd",
        acc: dict[str, str] | None = None, known: _Body | None = None, fills_rows: bool = False,
    ) -> None:  # fmt: skip
        self.kernel, self.lanes, self.pragma, self.fills_rows = kernel, lanes, pragma, fills_rows
        blocked = kernel.schedule.width < kernel.schedule.lanes
        self.base = base if base is not None else ("w + " if blocked else "")
        self.acc = acc or {"a": "acc->"}
        self.lines: list[tuple[int, str]] = []
        self.depth, self.unroll, self.runtime_u = 1, 1, False
        self.uniform: dict[Value, str] = dict(known.uniform) if known else {}
        self.planned: dict[Value, str] = {}
        self.arrays: dict[Value, str] = {}
        self.locals: dict[Value, str] = {}
        self.filled: dict[Value, str] = {}
        self.reads: dict[str, tuple[str, str]] = {}
        self.read_names: dict[str, str] = {}
        self.taken: set[str] = set(known.taken if known else _LOCALS)
        self.opened: frozenset[Index] = frozenset()
        self.counter: list[int] = known.counter if known else [0]

    def line(self, text: str) -> None:
        self.lines.append((self.depth, text))

    def indented(self) -> list[str]:
        return ["  " * depth + text for depth, text in self.lines]

    def fresh(self, value: Value) -> str:
        if value.op == "load":
            return self._claim(self._component(value))
        stem = (
            "t" if value.op in _INFIX or value.op in ("neg", "where", "maximum", "minimum", "piecewise") else value.op
        )
        return f"{stem}{'_' * stem[-1].isdigit()}{self._next()}"  # exp2 number 9 is not exp number 29

    def _component(self, load: Value) -> str:
        """An input's component by name: `b` where there is one, `x_2`, or `x_k1` in a loop."""
        name, k = self.kernel.names[load.attr[0]], load.attr[1]
        if self.kernel.inputs[load.attr[0]].dim == 1:
            return name
        return f"{name}_{_subscript(k)}"

    def _claim(self, name: str) -> str:
        """A name that nothing else has, with or without the number of a row j behind it."""
        copies = range(self.kernel.schedule.unroll)
        name = re.sub(r"\W+", "_", name)  # a position may be computed: v_(k1 * 2)
        while self.taken & {name, *(f"{name}_{u}" for u in copies)}:
            name += "_"
        self.taken |= {name, *(f"{name}_{u}" for u in copies)}
        return name

    def _next(self) -> int:
        self.counter[0] += 1
        return self.counter[0]

    def columns(self) -> None:
        """The rows j of a tile, lane by lane: the next ones of the lanes' lists, or row 0 beyond their end."""
        self.line(f"idx_t column[{self.unroll}][LANES];")
        self.line(f"for (int u = 0; u < {self.unroll}; u++)")
        self.line("  for (int l = 0; l < LANES; l++) column[u][l] = j + u < r->to[l] ? r->list[l][j + u] : 0;")

    # Values that are the same for all lanes ---------------------------------------------------------------------------

    def uniform_head(self, roots: Iterable[Value]) -> None:
        """Parameters and constants: once per call of the function."""
        for value in topological(roots):
            if not value.axes and value.op not in ("const", "count_j") and value.type != BOOL:
                self._uniform(value, 1)

    def uniform_level(self, roots: Iterable[Value]) -> None:
        """What depends on j alone, outside of loops over components."""
        for value in topological(roots):
            if value.axes == {"j"} and value.op != "index_j" and value.type != BOOL:
                self._uniform(value, self.unroll)

    def _uniform(self, value: Value, copies: int) -> None:
        if value in self.uniform:
            return
        name = self.uniform[value] = self.fresh(value)
        if value.op in COMPONENT_LOOPS:
            self._uniform_loop(value, name, copies)
            return
        for u in range(copies):
            suffix = self._suffix(value, u)
            self.line(f"const {self.type(value)} {name}{suffix} = {self.operation(value, u)};")

    def _uniform_loop(self, value: Value, name: str, copies: int) -> None:
        (k,), (body,) = value.attr, value.args
        names = [name + self._suffix(value, u) for u in range(copies)]
        starts = [f"{n} = 0" for n in names] + [f"{n}_best = 0" for n in names if value.op.startswith("arg")]
        self.line(f"{self.type(value)} {', '.join(starts)};")
        self.open(k)
        self._uniform_inside(body)
        for u, n in enumerate(names):
            for statement in self._accumulate(value, n, f"{n}_best", u):
                self.line(statement)
        self.close(k)

    def _accumulate(self, value: Value, total: str, best: str, u: int) -> list[str]:
        """One round of a loop over components: a sum, or the first best component, a NaN counting only as the first."""
        (k,), (body,) = value.attr, value.args
        term = self.expr(body, u, 4)
        if value.op == "sum":
            return [f"{total} += {self.expr(body, u)};"]
        best = best if value.op.startswith("arg") else total
        suffix, sign = self._suffix_of(value), "<" if value.op.endswith("min") else ">"
        wins = f"({k} == 0) | ({term} {sign} {best})"
        place = [f"{total} = select_{suffix}({wins}, {k}, {total});"] if value.op.startswith("arg") else []
        return [*place, f"{best} = select_{suffix}({wins}, {term}, {best});"]

    def _uniform_inside(self, *roots: Value) -> None:
        for value in topological(roots):
            inside = value.indices and value.indices <= self.opened and not value.by_row and "tile" not in value.axes
            if inside and value.op != "number" and value.type != BOOL:
                self._uniform(value, self.unroll if value.by_j else 1)

    def _suffix(self, value: Value, u: int) -> str:
        return f"_{u}" if value.by_j and self.unroll > 1 else ""

    # Loops over components --------------------------------------------------------------------------------------------

    def open(self, k: Index) -> None:
        bounds = f"{k.size} - 1; {k} >= 0; {k}--" if k.descending else f"0; {k} < {k.size}; {k}++"
        self.line(f"for (int {k} = {bounds}) {{")
        self.depth += 1
        self.opened |= {k}

    def close(self, k: Index) -> None:
        self.depth -= 1
        self.line("}")
        self.opened -= {k}
        for table in (self.uniform, self.arrays):
            for value in [v for v in table if k in v.indices]:
                del table[value]

    def loop(self, k: Index, values: list[Value], sink: Callable[[], list[str]]) -> None:
        """A loop over components around a loop over lanes."""
        outer = self.opened
        self._prepare(values, outer)
        self.open(k)
        self.level(values, self.opened, sink)
        self.close(k)

    def _prepare(self, values: list[Value], opened: frozenset[Index]) -> None:
        """Compute outside of a loop what does not depend on its counter."""
        outside = [v for v in self._needed(values) if v.indices <= opened and self._computed(v)]
        if outside:
            self.level([], opened, lambda: [], crossing=values)

    # Loops over lanes -------------------------------------------------------------------------------------------------

    def level(
        self, targets: list[Value], opened: frozenset[Index], sink: Callable[[], list[str]],
        crossing: Iterable[Value] = (), pragma: str | None = None,
    ) -> None:  # fmt: skip
        """Compute the values that depend on the open counters `opened`, then run `sink` in the last loop over lanes.

        Sums are loops of their own between loops over lanes, so values fall into phases: a sum comes a phase after
        what it reads at this level. Values read in later phases, in deeper loops, or under `crossing` go to arrays.
        """
        roots = [*targets, *crossing]
        self._uniform_inside(*roots)
        values = [v for v in self._needed(roots) if v.indices <= opened and self._computed(v)]
        phases = self._phases(values, opened)
        last = max([*phases.values(), 0])
        for value in self._crossing(values, phases, opened, targets, list(crossing)):
            self.plan_array(value)
        for phase in range(last + 1):
            for value in values:
                if value.op in COMPONENT_LOOPS and phases[value] == phase:
                    self._component_loop(value)
            pointwise = [v for v in values if v.op not in COMPONENT_LOOPS and phases[v] == phase]
            self._lanes(pointwise, targets, sink if phase == last else None, pragma or self.pragma)

    def _needed(self, roots: Iterable[Value]) -> list[Value]:
        """What is yet to be computed for the roots, arguments first."""
        found: dict[Value, None] = {}
        stack = [(root, False) for root in reversed(list(roots))]
        while stack:
            value, ready = stack.pop()
            if ready:
                found[value] = None
            elif value not in found and not self._available(value):
                stack.append((value, True))
                stack.extend((arg, False) for arg in reversed(value.args))
        return list(found)

    def _computed(self, value: Value) -> bool:
        """Whether a value needs a statement in a loop over lanes (or a sum); the others are written in place."""
        if value.op in ("const", *_LEAVES) or value.type == BOOL:
            return False
        return value.by_row or "tile" in value.axes

    def _available(self, value: Value) -> bool:
        return value in self.uniform or value in self.arrays or self._in_rows(value)

    def _in_rows(self, value: Value) -> bool:
        return value in self.kernel.rows and not self.fills_rows

    def _phases(self, values: list[Value], opened: frozenset[Index]) -> dict[Value, int]:
        phases: dict[Value, int] = {}
        for value in values:
            below = [phases[v] for v in self._read_at_level(value, opened) if v in phases]
            phases[value] = max(below, default=0) + (value.op in COMPONENT_LOOPS)
        return phases

    def _read_at_level(self, value: Value, opened: frozenset[Index]) -> Iterable[Value]:
        """Values of this level that a value reads, through unnamed ones and through the bodies of loops."""
        seen: set[Value] = set()
        stack = list(value.args)
        while stack:
            arg = stack.pop()
            if arg in seen:
                continue
            seen.add(arg)
            if self._computed(arg) and arg.indices <= opened:
                yield arg
            else:
                stack.extend(arg.args)

    def _crossing(
        self, values: list[Value], phases: dict[Value, int], opened: frozenset[Index], targets: list[Value],
        crossing: list[Value],
    ) -> list[Value]:  # fmt: skip
        wanted: set[Value] = set()
        last = max([*phases.values(), 0])
        for target in targets:  # read by the sink, in the last phase
            read_last = [target] if self._computed(target) else self._read_at_level(target, opened)
            wanted |= {v for v in read_last if phases.get(v, last) < last}
        for value in topological([*values, *crossing]):
            outside = value not in phases or value.op in COMPONENT_LOOPS
            for read in self._read_at_level(value, opened):
                if read in phases and ((outside and self._computed(value)) or phases.get(value, 0) > phases[read]):
                    wanted.add(read)
        wanted |= {v for v in crossing if v in phases}
        return [v for v in values if v in wanted and v.op not in COMPONENT_LOOPS]

    def plan_array(self, value: Value) -> None:
        """Declare an array for a value that is about to be computed (per row j of the tile if it varies with j)."""
        if value not in self.arrays and value not in self.planned:
            self.planned[value] = self._declare(value, "s" if value.op in COMPONENT_LOOPS else "f")

    def _declare(self, value: Value, stem: str) -> str:
        name = f"{stem}{self._next()}"
        self.line(f"{self.type(value)} {name}{f'[{self.unroll}]' if value.by_j else ''}[{self.lanes}];")
        return name

    def copies(self, values: list[Value]) -> list[str]:
        """Fill the arrays planned for values that no loop over lanes computes: what is the same in all lanes."""
        lines = []
        for value in values:
            name = self.planned.get(value)
            if name and not self._computed(value):
                lines += [f"{name}{self._at(value, u)} = {self.expr(value, u)};" for u in range(self.unroll)]
                self.filled[value] = self.planned.pop(value)
        return lines

    def any(self, value: Value, unroll: int) -> str:
        """Whether a truth value holds for some row j of the tile."""
        return " | ".join(self.expr(value, u, 4) for u in range(unroll))

    def _component_loop(self, value: Value) -> None:
        """A sum (or maximum ...) over components: a loop whose accumulators stay in registers."""
        (k,), (body,) = value.attr, value.args
        places = [self._at(value, u) for u in range(self.unroll if value.by_j else 1)]
        self.plan_array(value)
        total = self.planned.pop(value)
        best = self._declare(value, "best") if value.op.startswith("arg") else total
        self._lane_loop([f"{name}{place} = 0;" for name in sorted({total, best}) for place in places], self.pragma)
        self.open(k)

        def accumulate() -> list[str]:
            parts = [self._accumulate(value, total + place, best + place, u) for u, place in enumerate(places)]
            return [statement for part in parts for statement in part]

        self.level([body], self.opened, accumulate)
        self.close(k)
        self.arrays[value] = total

    def _at(self, value: Value, u: int) -> str:
        if not value.by_j:
            return "[l]"
        return "[u][l]" if self.runtime_u else f"[{u}][l]"

    def _lane_loop(self, statements: list[str], pragma: str) -> None:
        if not statements:
            return
        if pragma:
            self.line(pragma)
        self.line(f"for (int l = 0; l < {self.lanes}; l++) {{")
        self.depth += 1
        reads = [f"const {kind} {name} = {element};" for element, (kind, name) in self.reads.items()]
        for statement in reads + statements:
            self.line(statement)
        self.reads.clear()
        self.depth -= 1
        self.line("}")

    def _lanes(
        self, values: list[Value], targets: list[Value], sink: Callable[[], list[str]] | None, pragma: str
    ) -> None:
        uses = _uses([*values, *targets])
        statements: list[str] = []
        for value in values:
            statements += self._statement(value, uses.get(value, 0))
        if sink:
            statements += sink()
        self._lane_loop(statements, pragma)
        self.locals.clear()
        self.arrays.update(self.filled)
        self.filled.clear()

    def _statement(self, value: Value, uses: int) -> list[str]:
        copies = self.unroll if value.by_j and not self.runtime_u else 1
        planned = self.planned.pop(value, None)
        short = value.op in ("neg", "add", "sub", "mul") and len(self.operation(value, 0)) <= _INLINE
        if uses <= 1 and short and not planned:
            return []
        name = self.fresh(value)
        if value.op in TILE_REDUCTIONS:
            lines = self._tile_reduction(value, name)
        else:
            names = [f"{name}_{u}" if copies > 1 else name for u in range(copies)]
            lines = [f"const {self.type(value)} {n} = {self.operation(value, u)};" for u, n in enumerate(names)]
        self.locals[value] = name
        if planned:
            lines += [f"{planned}{self._at(value, u)} = {self.expr(value, u)};" for u in range(copies)]
            self.filled[value] = planned
        return lines

    def _tile_reduction(self, value: Value, name: str) -> list[str]:
        (x,), us = value.args, range(self.unroll)
        if value.op == "sum_j":
            cast = "(acc_t)" if self.kernel.acc != self.kernel.real else ""
            level = _ATOM if cast else 6
            return [f"const acc_t {name} = {' + '.join(cast + self.expr(x, u, level) for u in us)};"]
        sign, worst = ("<", "INF_F32") if "min" in value.op else (">", "-INF_F32")
        best, lines = f"{name}_best" if value.op.startswith("arg") else name, []
        lines.append(f"acc_t {best} = {worst};")
        if value.op.startswith("arg"):
            lines.append(f"idx_t {name} = -1;")
        for u in us:
            term = self.expr(x, u, 4)
            if value.op.startswith("arg"):
                lines.append(f"{name} = {term} {sign} {best} ? {self._row_j(u)} : {name};")
            lines.append(f"{best} = {term} {sign} {best} ? {term} : {best};")
        return lines

    def stores(self, stores: Iterable[Store]) -> list[str]:
        """All new values first: they read the accumulators that the stores overwrite."""
        prefix = self.acc["a"]
        values, writes = [], []
        for store in stores:
            text = self.expr(store.value, 0)
            if not re.fullmatch(r"\w+", text):
                name = f"new{self._next()}"
                values.append(f"const {self.type(store.value)} {name} = {text};")
                text = name
            writes.append(f"{prefix}{store.target}[{store.position}][{self.base}l] = {text};")
        return values + writes

    # Expressions ------------------------------------------------------------------------------------------------------

    def type(self, value: Value) -> str:
        if value.type == INDEX:
            return "idx_t"
        return "acc_t" if "tile" in value.axes else "real"

    def expr(self, value: Value, u: int, level: int = 0) -> str:
        """The value where it is read: a name, an element of an array, or the operation itself.

        Parentheses stand around an operation that binds less tightly than `level`.
        """
        if value in self.arrays:
            return self._read(
                self.arrays[value] + self._at(value, u),
                value,
                f"{self.arrays[value]}_u" if self.runtime_u else f"{self.arrays[value]}_{u}",
            )
        if value in self.uniform:
            return self.uniform[value] + self._suffix(value, u)
        if value in self.locals:
            copies = value.by_j and self.unroll > 1 and not self.runtime_u
            return f"{self.locals[value]}_{u}" if copies else self.locals[value]
        if self._in_rows(value):
            index = "".join(f"[{k}]" for k in value.indices)
            return self._read(
                f"r->{self.kernel.rows[value]}{index}[{self.base}l]", value, self.kernel.rows[value] + "_"
            )
        text = self.operation(value, u)
        binds = _PRECEDENCE.get(value.op, _ATOM)
        if value.op == "const" and text.startswith("-"):
            binds = _PRECEDENCE["neg"]
        return f"({text})" if binds < level else text

    def _read(self, element: str, value: Value, stem: str) -> str:
        """An array element, read once per lane before anything else: a load inside of a choice would not vectorise."""
        return self._element(element, self.type(value), stem)

    def _element(self, element: str, kind: str, stem: str) -> str:
        if element not in self.read_names:
            self.read_names[element] = self._claim(stem)
        self.reads[element] = (kind, self.read_names[element])
        return self.read_names[element]

    def operation(self, value: Value, u: int) -> str:
        op, args = value.op, value.args
        if op == "const":
            return _constant(value.attr[0], "idx_t" if value.type == INDEX else self.kernel.real)
        if op in _LEAVES:
            return self._leaf(value, u)
        if op == "piecewise":
            return self._piecewise(value, u)
        if op in _INFIX:
            symbol, level = _INFIX[op]
            left = max(level, 4) if level < 4 else level  # comparisons and logic: parentheses around each operand
            return f"{self.expr(args[0], u, left)} {symbol} {self.expr(args[1], u, max(level + 1, 4))}"
        if op in ("neg", "not"):
            return f"{'-' if op == 'neg' else '!'}{self.expr(args[0], u, _ATOM)}"
        if op == "where":
            if _PRECEDENCE[args[0].op] == 3:  # one comparison: the compiler makes a blend of it
                return f"{self.expr(args[0], u, 4)} ? {self.expr(args[1], u, 4)} : {self.expr(args[2], u, 4)}"
            return f"select_{self._suffix_of(value)}({', '.join(self.expr(arg, u) for arg in args)})"
        if op in ("maximum", "minimum"):
            a, b = (self.expr(arg, u, 4) for arg in args)
            return f"{a} {'>' if op == 'maximum' else '<'} {b} ? {a} : {b}"
        terms = [self.expr(arg, u) for arg in args]
        return f"{op}_{self._suffix_of(value)}({', '.join(terms)})"

    def _suffix_of(self, value: Value) -> str:
        """Which of a function's versions serves the value's type."""
        if value.type == INDEX:
            return f"i{self.kernel.schedule.index_bits}"
        return {"float": "f32", "double": "f64"}[self.kernel.acc if "tile" in value.axes else self.kernel.real]

    def _leaf(self, value: Value, u: int) -> str:
        if value.op == "number":
            return f"(real){value.attr[0]}"
        if value.op == "count_j":
            return f"({self._bound('to')} - {self._bound('from')})" if value.by_row else "(idx_t)call->cols"
        if value.op == "index_j":
            return "row" if self.runtime_u and not value.by_row else self._row_j(u)
        if value.op == "inside":
            place = f"j + {'u' if self.runtime_u else u}"
            after = f"(idx_t)({place}) < {self._bound('to')}"
            if self.kernel.program.pattern == "lists":
                return f"({after}) & ({place} < end)"
            return f"((idx_t)({place}) >= {self._bound('from')}) & ({after})"
        if value.op == "acc":
            which, name, position = value.attr
            size = next(field.size for field in self.kernel.program.fields if field.name == name)
            return self._read(
                f"{self.acc[which]}{name}[{_position(position, size)}][{self.base}l]",
                value,
                f"{name}_{_subscript(position)}" if which == "a" else f"{which}_{name}_{_subscript(position)}",
            )
        source, k = self.kernel.inputs[value.attr[0]], value.attr[1]
        name, position = self.kernel.names[source.position], _position(k, source.dim)
        if source.axis == "i":
            return self._read(f"r->{name}[{position}][{self.base}l]", value, self._component(value))
        if not source.axis:
            return f"in->{name}[{position}]"
        if value.by_row:
            element = f"in->{name}[(int64_t){self._row_j(u)} * in->stride.{name} + {position}]"
            return self._read(element, value, f"{self._component(value)}_{'u' if self.runtime_u else u}")
        return f"in->{name}[{f'(j + {u})' if u else 'j'} * in->stride.{name} + {position}]"

    def _bound(self, name: str) -> str:
        """Where the rows j of a lane begin, or end."""
        return self._element(f"r->{name}[{self.base}l]", "idx_t", f"{name}_")

    def _row_j(self, u: int) -> str:
        """Row j of a pair."""
        if self.kernel.program.pattern != "lists":
            return f"(idx_t)(j + {u})"
        return f"column[{'u' if self.runtime_u else u}][{self.base}l]"

    def _piecewise(self, value: Value, u: int) -> str:
        k, *stops = value.attr
        terms = [self.expr(arg, u, 4) for arg in value.args]
        choices = [f"{k} < {stop} ? {term} : " for stop, term in zip(stops[:-1], terms[:-1], strict=True)]
        return "".join(choices) + terms[-1]


def _by_counter(stores: Iterable[Store]) -> dict[Index, list[Store]]:
    """The stores that stand in loops, by the loop's counter."""
    found: dict[Index, list[Store]] = {}
    for store in stores:
        for k in indices_of(store.position):
            found.setdefault(k, []).append(store)
    return found


def _subscript(position: Position) -> str:
    """A component number as part of a name: `2`, `k1`, `k1_3_1` for k1 * 3 + 1."""
    return re.sub(r"\W+", "_", str(position)).strip("_")


def _ctype(dtype: str) -> str:
    return {"float32": "float", "float64": "double"}[dtype]


def _struct(name: str, comment: str, members: list[str]) -> str:
    aligned = " __attribute__((aligned(64)))" if name != "Inputs" else ""  # vectors do not cross cache lines
    return "\n".join([f"typedef struct {{ /* {comment} */", *(members or ["  char empty;"]), f"}}{aligned} {name};\n"])


def _identifiers(inputs: Sequence[Input]) -> dict[int, str]:
    """What each input is called in C, by position; no two alike."""
    names: dict[int, str] = {}
    for each in inputs:
        name = _identifier(each.name)
        while name in names.values():
            name += "_"
        names[each.position] = name
    return names


def _identifier(name: str) -> str:
    """The user's name in C: clear of keywords, of the words of our headers, of what C keeps for itself and its library
    (_Bool, int64_t, INT_MAX), and of temporaries, which end in a digit."""
    constant = len(name) > 1 and name.isupper()
    taken = name in _RESERVED or constant or name.startswith("_") or name.endswith("_t") or name[-1].isdigit()
    return name + "_" if taken else name


def _constant(value: Fraction | float | str, ctype: str) -> str:
    """A literal that the compiler rounds to the type exactly once."""
    if ctype == "idx_t":
        return str(int(value))
    dtype = "float32" if ctype == "float" else "float64"
    number = rounded(value, dtype) if isinstance(value, Fraction) else float(value)
    if not math.isfinite(number):
        word = "NAN" if math.isnan(number) else "INF"
        return f"{'-' if number < 0 else ''}{word}_F{dtype[-2:]}"
    return _shortest(np.dtype(dtype).type(number)) + "f" * (ctype == "float")


def _shortest(number: np.floating) -> str:
    """The shortest decimal that reads back as the number."""
    text = np.format_float_scientific(number, trim="0", unique=True)
    plain = np.format_float_positional(number, trim="0", unique=True)
    return plain if len(plain) <= len(text) else text


def _position(k: Position, dim: int) -> str:
    low, high = bounds(k)
    return str(k) if low >= 0 and high < dim else f"inside({k}, {dim})"


def _uses(values: Iterable[Value]) -> dict[Value, int]:
    counts: dict[Value, int] = {}
    for value in topological(values):
        for arg in value.args:
            counts[arg] = counts.get(arg, 0) + 1
    return counts


def _boundary(program: TileProgram) -> dict[Value, str]:
    """What the prologue keeps: values that depend on i alone and are read by others (but loads, which it packs)."""
    kept: dict[Value, str] = {}
    seen: set[Value] = set()
    for value in topological([s.value for s in (*program.update, *program.finish)]):
        if not value.hoisted:
            stack = list(value.args)
            while stack:
                arg = stack.pop()
                if arg in seen:
                    continue
                seen.add(arg)
                if arg.hoisted and arg.by_row and arg.op != "load" and arg.type == FLOAT and len(arg.indices) <= 1:
                    kept.setdefault(arg, f"r{len(kept)}")
                elif arg.hoisted:
                    stack.extend(arg.args)
    return kept


def _sources(values: list[Value]) -> list[Value]:
    """Floats of a pair that do not depend on the accumulators, read by what does: what an insertion reads."""
    order = {value: n for n, value in enumerate(topological(values))}
    found: dict[Value, None] = {}
    stack, seen = list(values), set(values)
    while stack:
        value = stack.pop()
        if "tile" in value.axes or value.type == BOOL:
            stack.extend(arg for arg in value.args if arg not in seen)
            seen.update(value.args)
        elif value.type == FLOAT and value.op != "const":
            found[value] = None
    return sorted(found, key=order.__getitem__)
