"""What patterns of pairs change in a kernel's text: which rows i a program has, and through which rows j it goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Walk:
    """Lines of text, for indices of the type INDEX, in which [ALONG_I] and [ALONG_J] lay vectors along a tile's axes.

    `params` are the parameters that only this kernel has, and `words` the variables that functions may be passed.
    `blocks` is the number of blocks of rows i, and `rows` says which those of a block are, up to `last`; `bounds` is
    what comes before the loops over j, and `segments` from where to where they go, and whether masked: tiles of rows j
    begin at multiples of BLOCK_J, as packed ones do. `tile` is for a tile of rows j, of which those from `start` to
    `stop` count, `row` for a single one; `count` is how many rows j a row i counts. With `spans`, all of that is done
    for each of several spans of rows j. `aligned` says that blocks of rows i begin at multiples of BLOCK_I.
    """

    rows: tuple[str, ...]
    tile: tuple[str, ...]
    row: tuple[str, ...]
    params: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    segments: tuple[tuple[str, str, bool], ...] = ()
    blocks: str = "tl.cdiv(M, BLOCK_I)"
    last: str = "M"
    start: str = "0"
    stop: str = "N"
    count: str = "count_j"
    spans: bool = False
    aligned: bool = True


_BLOCK = (
    "i = {block} * BLOCK_I + tl.arange(0, BLOCK_I)[ALONG_I]",
    "row_i = tl.minimum(i, M - 1)  # columns beyond the end repeat the last row",
)
_TILE = (
    "row_j = tl.minimum(j + lane, N - 1) if MASKED else j + lane",
    "rows = (j + lane)[ALONG_J]",
)
_ROW = ("rows = j + u", "row = rows")
_RANGES = Walk(
    params=("table", "spans", "tiles"),
    words=("begin", "stop", "last", "count_j"),
    blocks="tiles",
    rows=(
        "top = tl.load(table + 4 * block).to(INDEX)",
        "last = top + tl.load(table + 4 * block + 1).to(INDEX)",
        "i = top + tl.arange(0, BLOCK_I)[ALONG_I]",
        "row_i = tl.minimum(i, last - 1)  # columns beyond the end repeat the last row",
    ),
    last="last",
    bounds=(
        "begin = tl.load(spans + 2 * span).to(INDEX)",
        "stop = tl.load(spans + 2 * span + 1).to(INDEX)",
        "head = tl.cdiv(begin, BLOCK_J) * BLOCK_J",
        "full = tl.maximum(stop // BLOCK_J * BLOCK_J, head)",
    ),
    segments=(("begin // BLOCK_J * BLOCK_J", "head", True), ("head", "full", False), ("full", "stop", True)),
    tile=(*_TILE, "valid = ((j + lane >= begin) & (j + lane < stop))[ALONG_J]"),
    row=_ROW,
    start="tl.maximum(begin - j, 0) if MASKED else 0",
    stop="stop",
    spans=True,
    aligned=False,
)
_BAND = Walk(
    params=("low", "high"),
    words=("from_j", "to_j", "count_j"),
    rows=_BLOCK,
    bounds=(
        "from_j = tl.minimum(tl.maximum(row_i + low, 0), N)",
        "to_j = tl.minimum(tl.maximum(row_i + high + 1, 0), N)",
        "count_j = to_j - from_j",
        "begin = tl.min(from_j) // BLOCK_J * BLOCK_J",
        "end = tl.max(to_j)",
        "head = tl.minimum(tl.cdiv(tl.max(from_j), BLOCK_J) * BLOCK_J, end)",
        "full = tl.maximum(tl.min(to_j) // BLOCK_J * BLOCK_J, head)",
    ),
    segments=(("begin", "head", True), ("head", "full", False), ("full", "end", True)),
    tile=(
        *_TILE,
        "valid = ((j + lane)[ALONG_J] >= from_j) & ((j + lane)[ALONG_J] < to_j)",
    ),
    row=(*_ROW, "inside = (rows >= from_j) & (rows < to_j)"),
)
_LISTS = Walk(
    params=("start", "columns"),
    words=("stop", "listed", "count_j"),
    rows=_BLOCK,
    bounds=(
        "start_i = tl.load(start + row_i)",
        "count_j = (tl.load(start + row_i + 1) - start_i).to(INDEX)",
        "listed = columns + start_i",
        "stop = tl.max(count_j)",
    ),
    segments=(("0", "stop", True),),
    tile=(
        "valid = (j + lane)[ALONG_J] < count_j",
        "listed_j = tl.load(listed + (j + lane)[ALONG_J], mask=valid, other=0)",
        "row_j = listed_j",
        "rows = listed_j",
    ),
    row=(
        "inside = j + u < count_j",
        "rows = tl.load(listed + j + u, mask=inside, other=0)",
        "row = rows",
    ),
    stop="stop",
)
WALKS = {
    "": Walk(rows=_BLOCK, tile=(*_TILE, "valid = (j + lane < N)[ALONG_J]"), row=_ROW, count="N"),
    "ranges": _RANGES,
    "band": _BAND,
    "lists": _LISTS,
}
