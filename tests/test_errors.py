"""How errors read: the place, the excerpt with its mark, the hint, the nearest name."""

import pickle

import pytest

from tritonkeops.errors import Diagnostic, FormulaError, Source, Span, nearest


def rows(text: str, start: int, stop: int) -> list[str]:
    """The excerpt and its mark for a span of the text, as printed."""
    rendered = str(Diagnostic(Span(Source("formula", text), start, stop), "wrong"))
    return [line.removeprefix("  |").removeprefix(" ") for line in rendered.split("\n")[1:]]


def test_a_diagnostic_shows_place_excerpt_mark_and_hint() -> None:
    source = Source("formula", "b*Expp(-SqDist(x,y))")
    diagnostic = Diagnostic(Span(source, 2, 6), "unknown operator 'Expp'", "did you mean 'Exp'?")
    assert str(diagnostic) == "\n".join(
        [
            "formula, line 1, column 3: unknown operator 'Expp'",
            "  | b*Expp(-SqDist(x,y))",
            "  |   ^~~~",
            "  = did you mean 'Exp'?",
        ]
    )


def test_a_diagnostic_without_a_place_is_its_message() -> None:
    assert str(Diagnostic(None, "no variable", "declare one")) == "no variable\n  = declare one"


def test_an_error_shows_all_its_diagnostics() -> None:
    span = Span(Source("alias 2", "y = Vk(3)"), 4, 6)
    error = FormulaError([Diagnostic(span, "first"), Diagnostic(None, "second")])
    assert str(error) == "alias 2, line 1, column 5: first\n  | y = Vk(3)\n  |     ^~\nsecond"
    assert isinstance(error, ValueError)


def test_an_error_survives_pickling() -> None:
    error = FormulaError([Diagnostic(Span(Source("formula", "x"), 0, 1), "wrong", "hint")])
    again = pickle.loads(pickle.dumps(error))
    assert again.diagnostics == error.diagnostics
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("start", "line", "column"), [(0, 1, 1), (2, 1, 3), (3, 2, 1), (4, 3, 1), (6, 3, 3), (7, 3, 4)]
)
def test_line_and_column_count_from_one(start: int, line: int, column: int) -> None:
    span = Span(Source("formula", "ab\n\ncde"), start, start)
    assert (span.line, span.column) == (line, column)


def test_the_excerpt_is_the_line_concerned() -> None:
    assert rows("a +\nb c\n+ d", 6, 7) == ["b c", "  ^"]


def test_a_span_over_several_lines_is_marked_to_the_end_of_its_first() -> None:
    assert rows("a + f(b,\n      c)", 4, 17) == ["a + f(b,", "    ^~~~"]


def test_an_empty_span_gets_a_mark() -> None:
    assert rows("x +", 3, 3) == ["x +", "   ^"]
    assert rows("", 0, 0) == ["", "^"]
    assert rows("x +\ny", 3, 3) == ["x +", "   ^"]


def test_tabs_and_control_characters_keep_the_mark_in_place() -> None:
    assert rows("\tx\x1b\ty", 4, 5) == [" x  y", "    ^"]
    assert rows("x +\r\ny", 2, 3) == ["x +", "  ^"]


def test_wide_and_combining_characters_keep_the_mark_in_place() -> None:
    assert rows("漢e\u0301+字字", 4, 6) == ["漢e\u0301+字字", "    ^~~~"]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (150, 153), (290, 299), (299, 300), (300, 300)])
def test_a_long_line_is_shown_in_part(start: int, stop: int) -> None:
    text = "".join(chr(ord("a") + offset % 26) for offset in range(300))
    shown, mark = rows(text, start, stop)
    assert len(shown) <= 102
    begin, end = mark.index("^"), len(mark)
    assert shown[begin:end] == text[start:stop]
    assert shown.strip(".") in text
    assert len(shown.strip(".")) == 96
    assert (shown.startswith("..."), shown.endswith("...")) == (start > 32, start < 230)


def test_a_span_wider_than_the_excerpt_is_marked_as_far_as_it_goes() -> None:
    shown, mark = rows("x" * 300, 100, 300)
    assert len(mark) == len(shown) == 102


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exp", "Exp"),
        ("Expp", "Exp"),
        ("SQDIST", "SqDist"),
        ("SqDis", "SqDist"),
        ("Banana", None),
        ("", None),
    ],
)
def test_nearest_name(name: str, expected: str | None) -> None:
    assert nearest(name, ["Cos", "Exp", "SqDist", "SqNorm2", "x"]) == expected


def test_nearest_prefers_case_to_similarity_and_does_not_depend_on_order() -> None:
    assert nearest("ABS", ["ABSS", "Abs"]) == "Abs"
    assert nearest("bx", ["ax", "cx"]) == nearest("bx", ["cx", "ax"])
    assert nearest("eXP", ["exp", "Exp"]) == nearest("eXP", ["Exp", "exp"]) == "Exp"
    assert nearest("x", []) is None
