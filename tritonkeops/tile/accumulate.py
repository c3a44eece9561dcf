"""Tile IR -> tile IR: cheaper ways for a tile of j to enter the accumulators, as the schedule asks.

Each leaves the result as it is (a spread sum rounds in another order) and takes work out of the loop over pairs:

    spread    s += sum_j(x)                  ->  s[jj] += x; after the loop sum_j(s)     no addition across the tile
    coarse    i = argmin_j(x) where better   ->  i = the tile; after the loop argmin_j there     no index per pair
    screen    any pair passes the guard      ->  the tile's best passes it     one comparison per tile
    norms     dot(a, b) + r_i + c_j          ->  dot(a, b, r, c)               no addition per pair

Where selections have approximate values by contraction, the loop looks at those: it finds tiles, or rows that may be
among the best, and what is kept is evaluated directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tritonkeops.tile.ir import BOOL, FLOAT, INDEX, Store, TileProgram, Value, topological

Approximate = Mapping[Value, Mapping[str, Value]]
"""Of values that are selected: what to take in their place for "min_j" or "max_j" of a tile, and to find a "tile"."""

_ARGS = ("argmin_j", "argmax_j")
_ASKS = {"where": (0, 1), "and": (1, 0)}
"""The operand that may ask whether a pair is inside of a pattern, and the one that is the result if it is."""


def arrange(program: TileProgram, approximate: Approximate | None = None) -> TileProgram:
    """The program with the accumulation that its schedule asks for."""
    approximate = approximate or {}
    if program.schedule.spread:
        program = _spread(program)
    if program.schedule.coarse:
        program = _coarse(program, {value: found["tile"] for value, found in approximate.items()})
    if program.schedule.screened and program.guard is not None:
        program = replace(program, screen=_any_j(program.guard, approximate))
    return _with_norms(program) if program.schedule.form == "dot" else program


def _spread(program: TileProgram) -> TileProgram:
    """Keep a sum for each row of the tile where all that happens to an accumulator is s = s + sum_j(x), and where no
    loop over components reads accumulators: those are in memory."""
    if any(not isinstance(store.position, int) for store in (*program.merge, *program.finish)):
        return program
    stores = tuple(_spread_store(store) for store in program.update)
    changed = [store is not old for store, old in zip(stores, program.update, strict=True)]
    return replace(program, update=stores) if all(changed) else program


def _spread_store(store: Store) -> Store:
    total = store.value
    if total.op != "add" or not isinstance(store.position, int):
        return store
    acc, term = total.args
    if acc.op != "acc" or acc.attr[1:] != (store.target, store.position) or term.op != "sum_j":
        return store
    lanes = Value("acc", (), acc.attr, acc.type, acc.axes | {"j"})
    return replace(store, value=Value("add", (lanes, *term.args), (), total.type, total.axes | {"j"}))


def _coarse(program: TileProgram, approximate: Mapping[Value, Value]) -> TileProgram:
    """Let the loop find tiles, and `refine` the rows in them, and their values where the loop had approximate ones."""
    found = [v for v in topological([s.value for s in program.update]) if v.op in _ARGS]
    tile = Value("tile_j", (), (), INDEX, frozenset({"tile"}))
    refine = []
    for store in program.update:
        rows = [v for v in topological([store.value]) if v in found]
        if rows:
            refine.append(replace(store, value=rows[0]))
    known: dict[Value, Value] = {**dict.fromkeys(found, tile), **approximate}
    update = tuple(replace(store, value=_substitute(store.value, known)) for store in program.update)
    return replace(program, update=update, refine=tuple(refine))


def everywhere(program: TileProgram) -> TileProgram:
    """The program for tiles of pairs that all belong to its pattern: whether they are inside is not asked."""
    asking = [x for x in (program.guard, program.screen) if x]
    known: dict[Value, Value] = {}
    for value in topological([*(store.value for store in program.update), *asking]):
        asked, result = _ASKS.get(value.op, (0, 0))
        if value.op in _ASKS and value.args[asked].op == "inside":
            known[value] = _substitute(value.args[result], known)
    update = tuple(replace(store, value=_substitute(store.value, known)) for store in program.update)
    guard, screen = (x and _substitute(x, known) for x in (program.guard, program.screen))
    return replace(program, update=update, guard=guard, screen=screen)


def _substitute(root: Value, known: dict[Value, Value]) -> Value:
    """The value with others in its operands' places; `known` also holds what was rebuilt before."""
    for value in topological([root]):
        if value not in known:
            args = tuple(known[arg] for arg in value.args)
            known[value] = value if args == value.args else replace(value, args=args)
    return known[root]


# any_j over a comparison that is monotone in its first operand: what holds of some row holds of the best one.
_BEST: Mapping[str, str] = {"ge": "min_j", "gt": "min_j", "le": "max_j", "lt": "max_j"}


def _any_j(condition: Value, approximate: Approximate) -> Value:
    """Whether a condition holds for some row j of the tile: `not (x >= a)` or its kin, or such conditions joined by or.

    A tile reduction skips NaN, of which a guard must not be sure either; and what is not inside a pattern.
    """
    axes = (condition.axes - {"j"}) | {"tile"}
    if condition.op == "and" and condition.args[1].op == "inside":
        return _any_j(condition.args[0], approximate)
    if condition.op == "or":
        return replace(condition, args=tuple(_any_j(arg, approximate) for arg in condition.args), axes=axes)
    assert condition.op == "not", condition
    comparison = condition.args[0]
    x, a = comparison.args
    assert comparison.op in _BEST and "j" not in a.axes, comparison
    word = _BEST[comparison.op]
    best = Value(word, (approximate[x][word] if x in approximate else x,), (), x.type, axes)
    return replace(condition, args=(Value(comparison.op, (best, a), (), BOOL, axes),), axes=axes)


def sums_by_products(program: TileProgram) -> bool:
    """Whether all long sums are products of matrices: others would be in memory, where such tiles are too large."""
    looped = [store.value for store in program.update if not isinstance(store.position, int)]
    return bool(program.guard) or all(any(v.op == "dot_j" for v in topological([value])) for value in looped)


def _with_norms(program: TileProgram) -> TileProgram:
    """What is added to inner products and depends on one axis only becomes part of them."""
    known: dict[Value, Value] = {}

    def settled(store: Store) -> Store:
        return replace(store, value=_joined(store.value, known))

    screen = program.screen and _joined(program.screen, known)
    return replace(program, update=tuple(map(settled, program.update)), screen=screen)


def _joined(root: Value, known: dict[Value, Value]) -> Value:
    for value in topological([root]):
        if value not in known:
            args = tuple(known[arg] for arg in value.args)
            known[value] = _extended(value, args) or (value if args == value.args else replace(value, args=args))
    return known[root]


def _extended(value: Value, args: tuple[Value, ...]) -> Value | None:
    """dot(a, b, rows, cols) with another addend among its rows or cols, if that is what the value amounts to."""
    if value.op not in ("add", "sub") or (args[0].op != "dot" and (value.op == "sub" or args[1].op != "dot")):
        return None
    dot, addend = args if args[0].op == "dot" else args[::-1]
    if addend.type != FLOAT or not (addend.axes <= {"i"} or addend.axes <= {"j"}):
        return None
    a, b, *sums = dot.args
    place = next((n for n, each in enumerate(sums) if ("j" in each.axes) == ("j" in addend.axes)), None)
    if place is not None:
        sums[place] = Value(value.op, (sums[place], addend), (), FLOAT, sums[place].axes | addend.axes)
    else:
        negated = Value("neg", (addend,), (), FLOAT, addend.axes)
        sums.append(negated if value.op == "sub" else addend)
    return replace(dot, args=(a, b, *sums))
