"""Tile IR -> tile IR: cheaper ways for a tile of j to enter the accumulators, as the schedule asks.

Each leaves the result as it is (a spread sum rounds in another order) and takes work out of the loop over pairs:

    spread    s += sum_j(x)                  ->  s[jj] += x; after the loop sum_j(s)     no addition across the tile
    coarse    i = argmin_j(x) where better   ->  i = the tile; after the loop argmin_j there     no index per pair
    screen    any pair passes the guard      ->  the tile's best passes it     one comparison per tile
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tritonkeops.tile.ir import BOOL, INDEX, Store, TileProgram, Value, topological

_ARGS = ("argmin_j", "argmax_j")
_ASKS = {"where": (0, 1), "and": (1, 0)}
"""The operand that may ask whether a pair is inside of a pattern, and the one that is the result if it is."""


def arrange(program: TileProgram) -> TileProgram:
    """The program with the accumulation that its schedule asks for."""
    if program.schedule.spread:
        program = _spread(program)
    if program.schedule.coarse:
        program = _coarse(program)
    if program.schedule.screened and program.guard is not None:
        program = replace(program, screen=_any_j(program.guard))
    return program


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


def _coarse(program: TileProgram) -> TileProgram:
    """Let the loop find tiles, and `refine` the rows in them."""
    found = [v for v in topological([s.value for s in program.update]) if v.op in _ARGS]
    tile = Value("tile_j", (), (), INDEX, frozenset({"tile"}))
    known: dict[Value, Value] = dict.fromkeys(found, tile)
    refine = []
    for store in program.update:
        rows = [v for v in topological([store.value]) if v in found]
        if rows:
            refine.append(replace(store, value=rows[0]))
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


def _any_j(condition: Value) -> Value:
    """Whether a condition holds for some row j of the tile: `not (x >= a)` or its kin, or such conditions joined by or.

    A tile reduction skips NaN, of which a guard must not be sure either; and what is not inside a pattern.
    """
    axes = (condition.axes - {"j"}) | {"tile"}
    if condition.op == "and" and condition.args[1].op == "inside":
        return _any_j(condition.args[0])
    if condition.op == "or":
        return replace(condition, args=tuple(map(_any_j, condition.args)), axes=axes)
    assert condition.op == "not", condition
    comparison = condition.args[0]
    x, a = comparison.args
    assert comparison.op in _BEST and "j" not in a.axes, comparison
    best = Value(_BEST[comparison.op], (x,), (), x.type, axes)
    return replace(condition, args=(Value(comparison.op, (best, a), (), BOOL, axes),), axes=axes)
