"""A line on the terminal, not before a second is over, and gone in the end."""

from __future__ import annotations

import io

import pytest

from tritonkeops.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(stream: io.StringIO, seconds: list[float]) -> None:
    """Steps that end at these times, of as many as are expected."""
    times = iter([0.0, *seconds])
    with Progress("tuning", stream, lambda: next(times)) as progress:
        progress.expect(len(seconds))
        for _ in seconds:
            progress.step()


@pytest.mark.parametrize("seconds", [[], [0.2, 0.5], [0.9, 0.95, 1.0]])
def test_nothing_is_said_in_the_first_second(seconds: list[float]) -> None:
    terminal = Terminal()
    work(terminal, seconds)
    assert terminal.getvalue() == ""


def test_after_a_second_it_says_how_far_it_is_and_is_gone_in_the_end() -> None:
    terminal = Terminal()
    work(terminal, [0.5, 1.5, 2.0, 2.5])
    first, second, third, end = terminal.getvalue().split("\r")[1:]
    assert first == f"tuning [{15 * '#':30}] 2/4"
    assert second.endswith(" 3/4") and third == f"tuning [{30 * '#'}] 4/4"
    assert end == "\x1b[K"


def test_it_may_go_on_for_longer_than_expected() -> None:
    terminal = Terminal()
    with Progress("tuning", terminal, iter([0.0, 2.0, 2.0]).__next__) as progress:
        progress.expect(1)
        progress.step()
        progress.step()
    assert f"[{30 * '#'}] 2/1" in terminal.getvalue()


def test_what_is_no_terminal_is_told_nothing() -> None:
    file = io.StringIO()
    work(file, [0.5, 1.5])
    assert file.getvalue() == ""


def test_an_error_ends_the_line_too() -> None:
    terminal = Terminal()
    with pytest.raises(RuntimeError), Progress("tuning", terminal, iter([0.0, 2.0]).__next__) as progress:
        progress.step()
        raise RuntimeError
    assert terminal.getvalue().endswith("\r\x1b[K")
