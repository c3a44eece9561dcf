"""Errors that point at the text they are about.

A stage collects a `Diagnostic` for every fault it finds and raises them together in one `FormulaError`.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WINDOW = 96  # how much of a long line an excerpt shows, and how much of that stands before the caret
_LEAD = 32


@dataclass(frozen=True, slots=True)
class Source:
    """A text the user wrote, and what to call it in messages: "formula", "formula2", "alias 2"."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `stop` (excluded) of a source; an empty span is a place between two."""

    source: Source
    start: int
    stop: int

    @property
    def line(self) -> int:
        """The line on which the span starts, from 1."""
        return self.source.text.count("\n", 0, self.start) + 1

    @property
    def column(self) -> int:
        """The character of that line at which the span starts, from 1."""
        return self.start - self.source.text.rfind("\n", 0, self.start)

    @property
    def text(self) -> str:
        """What the span covers."""
        return self.source.text[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One fault: what is wrong, where (if it has a place), and what may help."""

    span: Span | None
    message: str
    hint: str = ""

    def __str__(self) -> str:
        lines = [self.message]
        if self.span is not None:
            place = f"{self.span.source.name}, line {self.span.line}, column {self.span.column}"
            lines = [f"{place}: {self.message}", *(f"  | {row}".rstrip() for row in _excerpt(self.span))]
        if self.hint:
            lines.append(f"  = {self.hint}")
        return "\n".join(lines)


class FormulaError(ValueError):
    """What is wrong with a formula or its variables: every fault found, each with its place in the text."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n".join(map(str, self.diagnostics))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: one that differs in case only, else a similar one."""
    folded = {candidate.casefold(): candidate for candidate in sorted(known, reverse=True)}
    similar = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded.get(name.casefold()) or (folded[similar[0]] if similar else None)


def _excerpt(span: Span) -> tuple[str, str]:
    """The line on which the span starts, and the mark to print below it."""
    text = span.source.text
    begin = text.rfind("\n", 0, span.start) + 1
    line = _printable(text[begin:].split("\n", 1)[0])
    shown, shift = _window(line, span.start - begin)
    start = span.start - begin + shift
    stop = min(span.stop - begin + shift, len(shown))
    tail = "~" * (_cells(shown[start:stop]) - 1)
    return shown, " " * _cells(shown[:start]) + "^" + tail


def _window(line: str, start: int) -> tuple[str, int]:
    """The part of a line to show so that `start` is in it, and by how much that moves its characters."""
    left = max(0, min(start - _LEAD, len(line) - _WINDOW))
    before = "..." if left else ""
    after = "..." if left + _WINDOW < len(line) else ""
    return before + line[left : left + _WINDOW] + after, len(before) - left


def _printable(line: str) -> str:
    """The line with a space for each tab and control character, so that a mark below it stays in place."""
    return "".join(character if character.isprintable() else " " for character in line)


def _cells(text: str) -> int:
    """The columns a terminal gives the text: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
