"""Which pairs (i, j) a call is about, from its arguments `ranges`, `mask` and `neighbors`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

_MASKS = {"i<j": "band:1:", "i<=j": "band:0:", "i>j": "band::-1", "i>=j": "band::0"}
_BAND = re.compile(r"\|(i-j|j-i)\|<=(\d+)$")


def pairs_of_call(
    ranges: Sequence[Tensor] | None, mask: str | None, neighbors: Tensor | None
) -> tuple[str, tuple[Tensor, ...]]:
    """The kind of pattern and its tensors; ("", ()) for all pairs. Raises ValueError, TypeError."""
    if ranges is None and mask is None and neighbors is None:
        return "", ()
    given = [name for name, x in (("ranges", ranges), ("mask", mask), ("neighbors", neighbors)) if x is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: expected at most one of ranges, mask and neighbors")
    if mask is not None:
        return _band(mask), ()
    if neighbors is not None:
        return "neighbors", (_tensor("neighbors", neighbors),)
    if not isinstance(ranges, (tuple, list)) or len(ranges) != 6:
        got = f"{len(ranges)} of them" if isinstance(ranges, (tuple, list)) else type(ranges).__name__
        words = "ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i"
        raise ValueError(f"ranges: expected six tensors ({words}), got {got}")
    return "ranges", tuple(_tensor(f"ranges[{n}]", x) for n, x in enumerate(ranges))


def _tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected an integer tensor, got {type(x).__name__}")
    return x


def _band(mask: str) -> str:
    if not isinstance(mask, str):
        raise TypeError(f"mask: expected a condition on i and j such as 'i<=j', got {type(mask).__name__}")
    text = mask.replace(" ", "")
    band = _BAND.match(text)
    if band:
        return f"band:-{int(band[2])}:{int(band[2])}"
    if text not in _MASKS:
        raise ValueError(f"mask={mask!r}: expected one of {', '.join(map(repr, _MASKS))}, or a band such as '|i-j|<=5'")
    return _MASKS[text]
