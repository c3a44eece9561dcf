"""What depends on one axis alone and is computed once per call: the columns of a table, with its rows for rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tritonkeops.backends.triton.scope import added, text_of
from tritonkeops.tile.ir import FLOAT, Index, Input, Position, Value, indices_of, topological


class Columns:
    """The table of an axis: values, and whole inputs that are read at computed positions, by their first column."""

    def __init__(self, axis: str, inputs: Mapping[int, Input]) -> None:
        self.axis, self.inputs, self.size = axis, inputs, 0
        self.values: dict[Value, int] = {}
        self.whole: dict[int, int] = {}
        self._first: dict[int, int] = {}
        self._ids: dict[Any, int] = {}

    def collect(self, roots: Iterable[Value], looped: bool = False) -> None:
        """Find the columns: the largest values of the axis; with `looped` only what is read inside of loops."""
        seen: set[Value] = set()
        stack = list(reversed(list(roots)))
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if not self._mine(value) or (looped and not value.indices) or not self._add(value):
                stack.extend(reversed(value.args))

    def column(self, value: Value) -> str | None:
        """The text of the column where a value is, or None."""
        if value in self.values:
            first = str(self.values[value])
            return next((added(first, str(k)) for k in value.indices), first)
        if value.op == "load" and value.indices and value.attr[0] in self.whole:
            return added(str(self.whole[value.attr[0]]), text_of(value.attr[1], self.inputs[value.attr[0]].dim))
        return None

    def _mine(self, value: Value) -> bool:
        rest = {axis for axis in value.axes if not isinstance(axis, Index)}
        return rest == {self.axis} and value.type == FLOAT

    def _add(self, value: Value) -> bool:
        """Pack a value, unless it would take more columns than its operands do."""
        if value.op == "load" and value.indices:
            if value.attr[0] not in self.whole:
                self.whole[value.attr[0]] = self._take(self.inputs[value.attr[0]].dim)
            return True
        if len(value.indices) > 1 or _moved(value):
            return False
        key = self._id(value)
        if key not in self._first:
            self._first[key] = self._take(next((k.size for k in value.indices), 1))
        self.values[value] = self._first[key]
        return True

    def _take(self, count: int) -> int:
        self.size += count
        return self.size - count

    def _id(self, root: Value) -> int:
        """A number that values have in common if they differ only in what their free loop counter is called."""
        known: dict[Value, int] = {}
        for value in topological([root]):
            attr = tuple(("free", a.size) if a in root.indices else a for a in value.attr)
            key = (value.op, attr, value.type, tuple(known[arg] for arg in value.args))
            known[value] = self._ids.setdefault(key, len(self._ids))
        return known[root]


def _moved(value: Value) -> bool:
    """Whether an input is read, or a piece chosen, at a position computed from the counter that is free."""
    found = (_position(v) for v in topological([value]) if v.op in ("load", "piecewise", "number"))
    return any(indices_of(k) & value.indices and not isinstance(k, Index) for k in found)


def _position(value: Value) -> Position:
    position: Position = value.attr[-1] if value.op == "load" else value.attr[0]
    return position
