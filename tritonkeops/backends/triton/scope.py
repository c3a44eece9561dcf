"""Tile values -> the statements of one Triton function: names, expressions, and loops over components.

All tensors of a kernel are two-dimensional and broadcast: what varies with i is [1, BLOCK_I], with j [BLOCK_J, 1],
with both [BLOCK_J, BLOCK_I].
"""

from __future__ import annotations

import builtins
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from tritonkeops.formula.ir import rounded
from tritonkeops.tile.ir import BOOL, COMPONENT_LOOPS, INDEX, Index, Position, Store, Value, bounds

_INFIX = {
    "add": ("+", 5), "sub": ("-", 5), "mul": ("*", 6), "div": ("/", 6), "lt": ("<", 1), "le": ("<=", 1), "gt": (">", 1),
    "ge": (">=", 1), "eq": ("==", 1), "ne": ("!=", 1), "and": ("&", 3), "or": ("|", 2),
}  # fmt: skip
_PREFIX = {"neg": ("-", 7), "not": ("~", 7)}
_LANGUAGE = {"maximum", "minimum", "exp", "exp2", "log", "sin", "cos", "sqrt", "abs", "floor"}
LIBRARY = {
    "log1p": "log1p", "expm1": "expm1", "asin": "asin", "acos": "acos", "atan": "atan", "atan2": "atan2",
    "tanh": "tanh", "erf": "erf", "pow": "pow", "round": "round_half_away",
}  # fmt: skip
"""What `tl` lacks: names in tritonkeops/backends/triton/math.py."""
NAN = 'float("nan")'
"""No constant of the module: a NaN differs from itself, so Triton would find that its value has changed."""
_ATOM = 9
_INLINE = 56  # expressions used once and no longer than this are written where they are used
RESERVED = frozenset([*keyword.kwlist, *dir(builtins), *LIBRARY.values(), "tl", "triton"])
LARGEST = {32: 2**31 - 1, 64: 2**63 - 1}


class Names:
    """Identifiers of a module; no two alike, none of them a word of Python or of the kernel."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(RESERVED) | set(taken)

    def claim(self, stem: str) -> str:
        """The stem made an identifier, with underscores behind it until it is free."""
        name = re.sub(r"\W+", "_", stem).strip("_")
        name = name if name.isidentifier() else f"v{name}"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


@dataclass
class Function:
    """The lines of a function's body as they are written."""

    lines: list[str] = field(default_factory=list)
    depth: int = 1

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def uses(self, name: str) -> bool:
        return any(re.search(rf"(?<!\.)\b{name}\b", line.partition("#")[0]) for line in self.lines)


Leaf = Callable[[Value], str | None]


class Scope:
    """Statements for values of one function, arguments first. `loaded` holds names for what is read more than once.

    `known` holds what other names the function has for values; `leaf` gives the text that reads a value from memory or
    from a variable, or None for one that has to be computed.
    """

    def __init__(
        self, function: Function, names: Names, types: Types, known: Mapping[Value, str], leaf: Leaf, shape: Shape
    ) -> None:
        self.function, self.names, self.types, self.leaf, self.shape = function, names, types, leaf, shape
        self.named: dict[Value, str] = dict(known)
        self.opened: frozenset[Index] = frozenset()
        self.loaded: dict[object, str] = {}

    # Statements -------------------------------------------------------------------------------------------------------

    def require(self, roots: Iterable[Value], later: Iterable[Value] = ()) -> None:
        """Write the statements that the roots read and that the open loops can compute; others will read them too."""
        roots, later = list(roots), list(later)
        order = self._pending(roots)
        uses: dict[Value, int] = {}
        for arg in [arg for value in self._pending([*roots, *later]) for arg in self._args(value)] + roots + later:
            uses[arg] = uses.get(arg, 0) + 1
        kept = {arg for value in order if self.kept(value) for arg in value.args}
        for value in order:
            if value.indices <= self.opened:
                self._statement(value, uses.get(value, 0) > 1 or value in kept)

    def kept(self, value: Value) -> bool:
        """Whether a value's operands are named: what a loop reads is computed once, before it."""
        return value.op in COMPONENT_LOOPS or not value.indices <= self.opened

    def _args(self, value: Value) -> tuple[Value, ...]:
        return () if self.leaf(value) is not None else value.args

    def _pending(self, roots: Iterable[Value]) -> list[Value]:
        """What is yet to be written, arguments first."""
        found: dict[Value, None] = {}
        stack = [(root, False) for root in reversed(list(roots))]
        while stack:
            value, ready = stack.pop()
            if ready:
                found[value] = None
            elif value not in found and value not in self.named:
                stack.append((value, True))
                stack.extend((arg, False) for arg in reversed(self._args(value)))
        return list(found)

    def _statement(self, value: Value, shared: bool) -> None:
        text = self.leaf(value)
        if text is not None:
            if text.startswith("tl.load"):
                self.name(value, text)
        elif value.op in COMPONENT_LOOPS:
            self._component_loop(value)
        elif value.op != "const" and value.op != "number":
            text = self.operation(value)
            short = (value.op in _INFIX or value.op in _PREFIX) and len(text) <= _INLINE
            if shared or not short:
                self.name(value, text)

    def name(self, value: Value, text: str) -> str:
        """Assign the text to a variable that stands for the value from here on."""
        name = self.named[value] = self._fresh(value)
        self.function.line(f"{name} = {text}")
        return name

    def _fresh(self, value: Value) -> str:
        if value.op == "load":
            return self.names.claim(self.types.component(value))
        if value.op == "mul" and [arg.op for arg in value.args] == ["const", "load"]:  # c * x
            return self.names.claim("c" + self.types.component(value.args[1]))
        plain = (
            value.op in _INFIX or value.op in _PREFIX or value.op in ("where", "maximum", "minimum", "piecewise", "acc")
        )
        return self.numbered("t" if plain else value.op)

    def numbered(self, stem: str) -> str:
        number = 1
        stem += "_" if stem[-1].isdigit() else ""
        while f"{stem}{number}" in self.names.taken:
            number += 1
        return self.names.claim(f"{stem}{number}")

    # Loops over components --------------------------------------------------------------------------------------------

    def open(self, k: Index) -> None:
        bounds = f"{k.size - 1}, -1, -1" if k.descending else f"{k.size}"
        self.function.line(f"for {k} in range({bounds}):")
        self.function.depth += 1
        self.opened |= {k}

    def close(self, k: Index) -> None:
        self.function.depth -= 1
        self.opened -= {k}
        for value in [v for v in self.named if k in v.indices]:
            del self.named[value]

    def _component_loop(self, value: Value) -> None:
        """A sum over components, or the first best of them, a NaN counting only as the first."""
        (k,), (body,) = value.attr, value.args
        total = self.numbered(value.op)
        best = self.numbered("best") if value.op.startswith("arg") else total
        for name in dict.fromkeys([total, best]):
            self.function.line(f"{name} = tl.zeros({self.shape(value)}, {self.types.of(value)})")
        self.open(k)
        self.require([body])
        if value.op == "sum":
            self.function.line(f"{total} += {self.expr(body)}")
        else:
            self._keep_best(value, k, body, total, best)
        self.close(k)
        self.named[value] = total

    def _keep_best(self, value: Value, k: Index, body: Value, total: str, best: str) -> None:
        if body not in self.named:
            self.name(body, self.expr(body))
        term, sign = self.named[body], "<" if value.op.endswith("min") else ">"
        wins = self.numbered("wins")
        self.function.line(f"{wins} = ({term} {sign} {best}) | ({k} == 0)")
        if best != total:
            self.function.line(f"{total} = tl.where({wins}, {k} * 1.0, {total})")
        self.function.line(f"{best} = tl.where({wins}, {term}, {best})")

    # Expressions ------------------------------------------------------------------------------------------------------

    def expr(self, value: Value, level: int = 0) -> str:
        """The value where it is read; parentheses stand around what binds less tightly than `level`."""
        if value in self.named:
            return self.named[value]
        text = self.leaf(value)
        if text is not None:
            return text
        text = self.operation(value)
        return f"({text})" if self._precedence(value, text) < level else text

    def _precedence(self, value: Value, text: str) -> int:
        if value.op in _INFIX:
            return _INFIX[value.op][1]
        if value.op == "neg":  # may have been pushed into a sum
            return 5 if self._is_sum(value.args[0]) else 7
        return 7 if text.startswith(("-", "~")) else _ATOM

    def operation(self, value: Value) -> str:
        """The operation itself, on operands where they are."""
        op, args = value.op, value.args
        if op == "const":
            return self.constant(value)
        if op == "number":
            return f"({value.attr[0]} * 1.0)"
        if op in _INFIX:
            symbol, level = _INFIX[op]
            read = self.exact if level == 1 else self.expr  # Triton 3.6 compares with numbers in float32
            left = self.tensor(args[0]) if _numbers(args) else read(args[0], level + (level == 1))
            return f"{left} {symbol} {read(args[1], level + 1)}"
        if op == "neg":
            return self._negated(args[0])
        if op == "not":
            return f"~{self.expr(args[0], 8)}"
        if op == "where":
            return f"tl.where({self.expr(args[0])}, {', '.join(self._chosen(args[1:]))})"
        if op == "piecewise":
            return self._piecewise(value)
        assert op in LIBRARY or op in _LANGUAGE, op
        function = LIBRARY.get(op, f"tl.{op}")
        return f"{function}({', '.join(self.operands(args))})"

    def _is_sum(self, value: Value) -> bool:
        return value.op in ("add", "sub") and value not in self.named and self.leaf(value) is None

    def _negated(self, value: Value) -> str:
        """-(a + b) as -(a) - b: a sum of products then takes the minus into its multiply-adds."""
        if _numbers([value]):
            return f"-{self.tensor(value)}"
        if not self._is_sum(value) or _numbers(value.args):
            return f"-{self.expr(value, 8)}"
        a, b = value.args
        if value.op == "sub":
            return f"{self.expr(b, 5)} - {self.expr(a, 6)}"
        return f"{self._negated(a)} - {self.expr(b, 6)}"

    def _piecewise(self, value: Value) -> str:
        k, *stops = value.attr
        text, *terms = reversed(self._chosen(value.args))
        for stop, term in zip(reversed(stops[:-1]), terms, strict=True):
            text = f"tl.where({k} < {stop}, {term}, {text})"
        return text

    def _chosen(self, args: Sequence[Value]) -> list[str]:
        """Operands of `tl.where`, which makes a float32 of two numbers."""
        texts = [self.exact(arg) for arg in args]
        if _numbers(args) and self.types.of(args[0]) == "tl.float64":
            texts[0] = self.tensor(args[0])
        return texts

    def operands(self, args: Sequence[Value]) -> list[str]:
        """What a function is called with: at least one tensor."""
        texts = [self.exact(arg) for arg in args]
        return [self.tensor(args[0]), *texts[1:]] if _numbers(args) else texts

    def exact(self, value: Value, level: int = 0) -> str:
        """An operand of a call, where Triton would take a Python number for a float32."""
        if value.op == "const" and self.types.of(value) == "tl.float64" and not _is_float32(value.attr[0]):
            return self.tensor(value)
        return self.expr(value, level)

    def tensor(self, number: Value) -> str:
        """A number with a type: without, Triton would compute with it as Python does, or in float32."""
        return f"tl.full({self.shape(number)}, {self.expr(number)}, {self.types.of(number)})"

    def constant(self, value: Value) -> str:
        """A literal that reads back as the number of the type nearest to the constant."""
        number = value.attr[0]
        if value.type == INDEX:
            return str(int(number))
        if not isinstance(number, Fraction):
            return {"inf": "INF", "-inf": "-INF"}.get(number, NAN)
        dtype = self.types.of(value).removeprefix("tl.")
        nearest = rounded(number, dtype)
        if math.isinf(nearest):
            return "INF" if nearest > 0 else "-INF"
        shortest = str(np.float32(nearest)) if dtype == "float32" else repr(nearest)
        # The shortest digits of the largest float32 are more than a float32 holds.
        return shortest if abs(float(shortest)) <= _LARGEST_F32 or dtype == "float64" else repr(nearest)


def _numbers(values: Iterable[Value]) -> bool:
    return all(value.op in ("const", "number") for value in values)


_LARGEST_F32 = float(np.finfo(np.float32).max)


def _is_float32(number: Fraction | str) -> bool:
    return isinstance(number, str) or rounded(number, "float32") == number


@dataclass(frozen=True)
class Types:
    """Element types of a kernel, and how its inputs' components are called."""

    real: str
    acc: str
    index: str
    component: Callable[[Value], str]

    def of(self, value: Value) -> str:
        """The Triton type of a value's elements."""
        if value.type == BOOL:
            return "tl.int1"
        if value.type == INDEX:
            return self.index
        return self.acc if "tile" in value.axes else self.real


Shape = Callable[[Value], str]


def text_of(position: Position, size: int) -> str:
    """A component number, kept within a vector of `size` where a branch not taken may pass its end."""
    low, high = bounds(position)
    text = str(position).replace("/", "//")
    return text if low >= 0 and high < size else f"tl.minimum(tl.maximum({text}, 0), {size - 1})"


def added(a: str, b: str) -> str:
    """The text of a + b, without zeros."""
    return a if b == "0" else b if a == "0" else f"{a} + {b}"


def first_of(position: Position) -> int:
    """The number of a component, or of the first one that a loop stores."""
    return position if isinstance(position, int) else bounds(position)[0]


def by_counter(stores: Iterable[Store]) -> tuple[list[Store], dict[Index, list[Store]]]:
    """Stores of single components, and those that stand in loops by the loop's counter."""
    plain: list[Store] = []
    looped: dict[Index, list[Store]] = {}
    for store in stores:
        if isinstance(store.position, int):
            plain.append(store)
        else:
            for k in store.position.indices:
                looped.setdefault(k, []).append(store)
    return plain, looped
