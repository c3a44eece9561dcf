"""Text to syntax tree.

`grammar/formula.lark` defines the syntax and lark reads it (LALR). This module turns its trees into ours and
its errors into diagnostics a user can act on. Nothing is evaluated and nothing recurses: text of any shape
and size gives a tree or a `FormulaError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonkeops.errors import Diagnostic, FormulaError, Source, Span
from tritonkeops.frontend.ast import MAX_DEPTH, Alias, Call, Expr, Name, Number, Operation, Sequence, walk

if TYPE_CHECKING:
    from lark import Lark, Token, Tree
    from lark.exceptions import UnexpectedInput, UnexpectedToken

_MAX_LITERAL = 4000
"""The longest literal, in characters. Any double, written out exactly, fits three times; Python refuses to
convert more than 4300 digits."""


def parse_formula(text: str, name: str = "formula") -> Expr:
    """The tree of a formula; `name` is what messages call the text."""
    source = _source(text, name)
    expr = _build(_read(source, "formula"), source)
    assert not isinstance(expr, Alias)
    _check_depth(expr)
    return expr


def parse_alias(text: str, name: str = "alias") -> Alias:
    """The tree of `x = Vi(3)`, or of a value alone such as `Var(0,3,0)`; `name` as for `parse_formula`."""
    source = _source(text, name)
    alias = _build(_read(source, "alias"), source)
    assert isinstance(alias, Alias)
    _check_depth(alias.value)
    return alias


def _source(text: str, name: str) -> Source:
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a str, got {type(text).__name__}")
    return Source(name, text)


# ---- lark ----


@cache
def _lark() -> Lark:
    """The parser, imported and built at the first parse: importing this package should not cost that time."""
    from lark import Lark

    return Lark(_grammar(), parser="lalr", lexer="contextual", start=["formula", "alias"], propagate_positions=True)


def _grammar() -> str:
    """The text of formula.lark, from inside the installed package or from beside it in a checkout."""
    package = Path(__file__).parent.parent
    places = [folder / "grammar" / "formula.lark" for folder in (package, package.parent)]
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(f"the grammar is neither at {places[0]} nor at {places[1]}")


def _read(source: Source, start: str) -> Tree[Token]:
    from lark.exceptions import UnexpectedInput  # deferred with lark itself, see _lark

    try:
        return _lark().parse(source.text, start)
    except UnexpectedInput as error:
        raise FormulaError([_diagnose(error, source, start)]) from None


# ---- lark's tree to ours ----


def _build(tree: Tree[Token], source: Source) -> Expr | Alias:
    """Our tree for lark's: an expression, or an alias where that is the rule at the root."""
    built: dict[int, Expr | Alias] = {}
    for node in tree.iter_subtrees():  # children first
        parts: list[Any] = [built.get(id(child), child) for child in node.children]
        span = Span(source, node.meta.start_pos, node.meta.end_pos)
        built[id(node)] = _RULES[node.data](span, *parts)
    return built[id(tree)]


def _place(span: Span, token: Token) -> Span:
    """Where a token stands, in the source that `span` is of."""
    assert token.start_pos is not None
    assert token.end_pos is not None
    return Span(span.source, token.start_pos, token.end_pos)


def _number(span: Span, token: Token) -> Number:
    return Number(str(token), _value(span), token.isdecimal(), span)


def _value(span: Span) -> Fraction:
    """The exact value of a literal; one outside the range of double precision is an error."""
    if len(span.text) > _MAX_LITERAL:
        message = f"a number of {len(span.text)} characters; at most {_MAX_LITERAL} are read"
        raise FormulaError([Diagnostic(span, message)])
    if not span.text.lower().split("e")[0].strip("0."):
        return Fraction(0)  # whatever its exponent, which Fraction would raise 10 to
    if float(span.text) in (0.0, math.inf):
        raise FormulaError([Diagnostic(span, "the number is outside the range of double precision")])
    return Fraction(span.text)


def _name(span: Span, token: Token) -> Name:
    return Name(str(token), span)


def _infix(span: Span, left: Expr, symbol: Token, right: Expr) -> Operation:
    return Operation(str(symbol), (left, right), span, _place(span, symbol))


def _prefix(span: Span, sign: Token, operand: Expr) -> Expr:
    return operand if sign == "+" else Operation(str(sign), (operand,), span, _place(span, sign))


def _call(span: Span, callee: Token, *args: Expr) -> Call:
    return Call(str(callee), args, span, _place(span, callee))


def _sequence(span: Span, *items: Expr) -> Sequence:
    return Sequence(items, span)


def _alias(span: Span, name: Token | None, value: Expr) -> Alias:
    if name is None:
        return Alias(None, None, value, span)
    return Alias(str(name), _place(span, name), value, span)


_RULES: dict[str, Callable[..., Expr | Alias]] = {
    "number": _number,
    "name": _name,
    "infix": _infix,
    "prefix": _prefix,
    "call": _call,
    "sequence": _sequence,
    "alias": _alias,
}


def _check_depth(expr: Expr) -> None:
    """Refuse a tree deeper than later stages, which recurse, could follow."""
    for depth, node in walk(expr):
        if depth > MAX_DEPTH:
            message = f"the expression is nested more than {MAX_DEPTH} levels deep"
            hint = "in a chain a + b + c + ... each term is a level: group it, as in (a + b) + (c + d)"
            chained = isinstance(node, Operation) and len(node.args) == 2
            raise FormulaError([Diagnostic(_head(node), message, hint if chained else "")])


def _head(node: Expr) -> Span:
    if isinstance(node, Operation):
        return node.symbol_span
    return node.callee_span if isinstance(node, Call) else node.span


# ---- lark's errors to diagnostics ----

_WRITTEN = {
    "^": "a power is written '**'",
    "\N{MINUS SIGN}": "minus is written '-'",
    "\N{EN DASH}": "minus is written '-'",
    "\N{MULTIPLICATION SIGN}": "a product is written '*'",
    "\N{MIDDLE DOT}": "a product is written '*'",
}
_CLOSER = {"(": ")", "[": "]"}
_AFTER_LIST = {"COMMA", "RPAR", "RSQB"}  # what lark expects there; after any other operand, operators too


def _diagnose(error: UnexpectedInput, source: Source, start: str) -> Diagnostic:
    from lark.exceptions import UnexpectedToken  # deferred with lark itself, see _lark

    if not isinstance(error, UnexpectedToken):
        at: Any = error.pos_in_stream  # lark's annotation knows it as None only
        return _unexpected_character(Span(source, at, at + 1))
    if "NAME" in error.expected:
        return _missing_expression(error.token, source, start)
    return _unexpected_after_operand(error, source, start)


def _unexpected_character(span: Span) -> Diagnostic:
    return Diagnostic(span, f"unexpected character {span.text!r}", _WRITTEN.get(span.text, ""))


def _missing_expression(token: Token, source: Source, start: str) -> Diagnostic:
    span = _where(token, source)
    if not source.text.strip():
        return Diagnostic(span, f"the {start} is empty")
    hint = "a list stands only as an argument of an operator" if token == "[" else ""
    return Diagnostic(span, f"expected an expression, got {_describe(token, start)}", hint)


def _unexpected_after_operand(error: UnexpectedToken, source: Source, start: str) -> Diagnostic:
    """The fault where an expression was complete and neither an operator nor a proper end came next."""
    token = error.token
    span = _where(token, source)
    opening = _innermost_open(Span(source, 0, span.start))
    takes_operator = error.expected != _AFTER_LIST
    if token.type == "COMPARE" and takes_operator:
        return Diagnostic(span, "comparisons do not chain", "for 'a < b < c' write '(a < b) * (b < c)'")
    if token.type == "EQUAL" and start == "formula":
        hint = "'==' compares; a declaration such as 'x = Vi(3)' belongs in the list of aliases"
        return Diagnostic(span, "'=' has no meaning in a formula", hint)
    if token.type == "$END" and opening:
        return Diagnostic(opening, f"'{opening.text}' is never closed")
    if token in _CLOSER.values():
        return _wrong_closer(span, opening)
    message = f"expected {_continuations(opening, takes_operator, start)}, got {_describe(token, start)}"
    hint = "a product is written '*'" if token.type in ("NAME", "NUMBER", "LPAR") else ""
    return Diagnostic(span, message, hint)


def _wrong_closer(span: Span, opening: Span | None) -> Diagnostic:
    if opening is None:
        return Diagnostic(span, f"'{span.text}' closes nothing")
    place = f"line {opening.line}, column {opening.column}"
    wanted = f"'{_CLOSER[opening.text]}' for the '{opening.text}' of {place}"
    return Diagnostic(span, f"expected {wanted}, got '{span.text}'")


def _continuations(opening: Span | None, takes_operator: bool, start: str) -> str:
    """What may follow a complete expression inside the bracket `opening`, in words."""
    wanted = ["an operator"] if takes_operator else []
    if opening is None:
        return " or ".join([*wanted, f"the end of the {start}"])
    if opening.text == "[" or _opens_call(opening):
        wanted.append("','")
    return " or ".join(filter(None, [", ".join(wanted), f"'{_CLOSER[opening.text]}'"]))


def _opens_call(opening: Span) -> bool:
    """Whether a '(' follows a name."""
    before = opening.source.text[: opening.start].rstrip()[-1:]
    return before.isalnum() or before == "_"


def _innermost_open(read: Span) -> Span | None:
    """The last bracket left open in `read`, text that lark has accepted, so that the others in it match."""
    opened: list[int] = []
    for offset, character in enumerate(read.text):
        if character in _CLOSER:
            opened.append(offset)
        elif character in _CLOSER.values():
            opened.pop()
    return Span(read.source, opened[-1], opened[-1] + 1) if opened else None


def _where(token: Token, source: Source) -> Span:
    """Where a token stands; the end of the text stands just past the last character that is not blank."""
    end = len(source.text.rstrip())
    return Span(source, end, end) if token.type == "$END" else _place(Span(source, 0, 0), token)


def _describe(token: Token, start: str) -> str:
    return f"the end of the {start}" if token.type == "$END" else f"'{token}'"
