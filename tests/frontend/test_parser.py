"""Text to syntax tree: precedence, spans, literals, every error as it reads, and text of any shape."""

import copy
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonkeops.errors import FormulaError
from tritonkeops.frontend import parser
from tritonkeops.frontend.ast import (
    MAX_DEPTH,
    Alias,
    Call,
    Expr,
    Name,
    Number,
    Operation,
    Sequence,
    show,
    walk,
)
from tritonkeops.frontend.parser import parse_alias, parse_formula


def written(expr: Expr) -> str:
    """The expression with a pair of parentheses around every operation."""
    if isinstance(expr, Number):
        return expr.text
    if isinstance(expr, Name):
        return expr.name
    if isinstance(expr, Operation):
        return "(" + expr.symbol.join(["", *map(written, expr.args)][-2:]) + ")"
    if isinstance(expr, Call):
        return f"{expr.callee}({','.join(map(written, expr.args))})"
    return f"[{','.join(map(written, expr.items))}]"


def message(text: str) -> str:
    with pytest.raises(FormulaError) as caught:
        parse_formula(text)
    return str(caught.value)


# ---- structure ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a+b+c", "((a+b)+c)"),
        ("a-b-c", "((a-b)-c)"),
        ("a-b+c", "((a-b)+c)"),
        ("a/b*c", "((a/b)*c)"),
        ("a+b*c", "(a+(b*c))"),
        ("a*b+c", "((a*b)+c)"),
        ("(a+b)*c", "((a+b)*c)"),
        ("a**b**c", "(a**(b**c))"),
        ("-x**2", "(-(x**2))"),
        ("(-x)**2", "((-x)**2)"),
        ("2**-x", "(2**(-x))"),
        ("2**-x**y", "(2**(-(x**y)))"),
        ("a*b**c", "(a*(b**c))"),
        ("-a*b", "((-a)*b)"),
        ("a*-b", "(a*(-b))"),
        ("a--b", "(a-(-b))"),
        ("--a", "(-(-a))"),
        ("+a", "a"),
        ("-+-a", "(-(-a))"),
        ("a*+b", "(a*b)"),
        ("x|y+x", "(x|(y+x))"),
        ("a|b|c", "((a|b)|c)"),
        ("a|b<c|d", "((a|b)<(c|d))"),
        ("a+b<c", "((a+b)<c)"),
        ("(a<b)<c", "((a<b)<c)"),
        ("(f | g)*h", "((f|g)*h)"),
        ("f()", "f()"),
        ("f(a<b, -c)", "f((a<b),(-c))"),
        ("f(((a)))", "f(a)"),
        ("((a))", "a"),
        ("f(g(x))", "f(g(x))"),
        (" f (\n x\t,\r\n 1 ) ", "f(x,1)"),
        ("f([2, 3], [])", "f([2,3],[])"),
        ("f((x, y), (x,), ())", "f([x,y],[x],[])"),
        ("f((x), [y])", "f(x,[y])"),
        ("f([[1, 2], (3, 4)], ((1, 2), 3))", "f([[1,2],[3,4]],[[1,2],3])"),
        ("f((a+b)*c, (a+b, c))", "f(((a+b)*c),[(a+b),c])"),
        ("Sum_Reduction(Exp(-SqDist(x,y))*b, 1)", "Sum_Reduction((Exp((-SqDist(x,y)))*b),1)"),
    ],
)
def test_precedence_and_grouping(text: str, expected: str) -> None:
    assert written(parse_formula(text)) == expected


@pytest.mark.parametrize("symbol", ["<", "<=", ">", ">=", "==", "!=", "|", "+", "-", "*", "/", "**"])
def test_every_infix_symbol(symbol: str) -> None:
    expr = parse_formula(f"x{symbol}y")
    assert isinstance(expr, Operation)
    assert (expr.symbol, expr.symbol_span.text, written(expr)) == (symbol, symbol, f"(x{symbol}y)")


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        (" 1.5 ", ["1.5"]),
        (" x1 ", ["x1"]),
        ("( x )", ["x"]),
        ("a  + b", ["a  + b", "a", "b"]),
        (" - x", ["- x", "x"]),
        ("(a + b) * (c)", ["(a + b) * (c)", "a + b", "a", "b", "c"]),
        ("-(a)", ["-(a)", "a"]),
        ("+(a)*b", ["+(a)*b", "a", "b"]),
        ("f ( x , 1 ) ", ["f ( x , 1 )", "x", "1"]),
        ("f()", ["f()"]),
        ("f( [ 2 ] , (3, 4 ), [] )", ["f( [ 2 ] , (3, 4 ), [] )", "[ 2 ]", "2", "(3, 4 )", "3", "4", "[]"]),
        ("(a)**(b)", ["(a)**(b)", "a", "b"]),
        ("f(\n(a),\nb\n)", ["f(\n(a),\nb\n)", "a", "b"]),
    ],
)
def test_spans(text: str, spans: list[str]) -> None:
    assert [node.span.text for _, node in walk(parse_formula(text))] == spans


def test_spans_of_symbols_callees_and_sources() -> None:
    expr = parse_formula("a -\n Exp (-b)", "formula2")
    assert isinstance(expr, Operation) and isinstance(expr.args[1], Call)
    negation = expr.args[1].args[0]
    assert isinstance(negation, Operation)
    assert (expr.symbol_span.start, expr.symbol_span.stop) == (2, 3)
    assert (expr.args[1].callee_span.start, expr.args[1].callee_span.stop) == (5, 8)
    assert (negation.symbol_span.start, negation.symbol_span.stop) == (10, 11)
    assert (negation.span.line, negation.span.column) == (2, 7)
    assert expr.span.source.name == "formula2"


def test_show() -> None:
    assert show(parse_formula("Exp(-x)*0.5\n + f([2])")) == "\n".join(
        [
            "operation +  // 1:1",
            "  operation *  // 1:1",
            "    call Exp  // 1:1",
            "      operation -  // 1:5",
            "        name x  // 1:6",
            "    number 0.5  // 1:9",
            "  call f  // 2:4",
            "    sequence  // 2:6",
            "      number 2  // 2:7",
        ]
    )


def test_aliases() -> None:
    alias = parse_alias(" x = Vi(0, 3) ")
    assert alias.name == "x" and alias.name_span is not None
    assert (alias.name_span.text, alias.span.text, written(alias.value)) == ("x", "x = Vi(0, 3)", "Vi(0,3)")
    bare = parse_alias("Var(0,3,0)")
    assert isinstance(bare, Alias)
    assert (bare.name, bare.name_span, written(bare.value)) == (None, None, "Var(0,3,0)")
    assert (written(parse_alias("x == y").value), parse_alias("x").name) == ("(x==y)", None)


# ---- literals ----


@pytest.mark.parametrize(
    ("text", "value", "is_integer"),
    [
        ("2", Fraction(2), True),
        ("007", Fraction(7), True),
        ("0.5", Fraction(1, 2), False),
        (".5", Fraction(1, 2), False),
        ("3.", Fraction(3), False),
        ("0.1", Fraction(1, 10), False),
        ("1e-3", Fraction(1, 1000), False),
        ("1E+3", Fraction(1000), False),
        ("2.5e2", Fraction(250), False),
        ("3.e1", Fraction(30), False),
        ("12345678901234567890123", Fraction(12345678901234567890123), True),
        ("1e308", Fraction(10**308), False),
        ("1e-320", Fraction(1, 10**320), False),
        ("0", Fraction(0), True),
        ("0.00e99999999999999999999", Fraction(0), False),
        ("0e-99999999999999999999", Fraction(0), False),
        ("0." + "0" * 3000 + "1e3001", Fraction(1), False),
    ],
)
def test_literals_are_exact(text: str, value: Fraction, is_integer: bool) -> None:
    number = parse_formula(text)
    assert isinstance(number, Number)
    assert (number.text, number.value, number.is_integer) == (text, value, is_integer)


@pytest.mark.parametrize("text", ["1e400", "1e-400", "9" * 310, "1e-100000000", "1e99999999999999999999"])
def test_literals_outside_double_range_are_errors(text: str) -> None:
    assert "column 3: the number is outside the range of double precision" in message(f"x*{text}")


def test_endless_literals_are_errors() -> None:
    assert "a number of 5000 characters; at most 4000 are read" in message("1" * 5000)


# ---- errors ----

ERRORS = [
    """
formula, line 1, column 1: the formula is empty
  |
  | ^
""",
    """
formula, line 1, column 4: expected an expression, got the end of the formula
  | x +
  |    ^
""",
    """
formula, line 1, column 5: expected an expression, got ')'
  | x + )
  |     ^
""",
    """
formula, line 1, column 1: expected an expression, got '*'
  | *x
  | ^
""",
    """
formula, line 1, column 5: expected an expression, got '*'
  | x** *y
  |     ^
""",
    """
formula, line 1, column 4: '(' is never closed
  | Exp(x
  |    ^
""",
    """
formula, line 1, column 2: '(' is never closed
  | f(g(x) + h(y)
  |  ^
""",
    """
formula, line 1, column 3: '[' is never closed
  | f([x
  |   ^
""",
    """
formula, line 1, column 2: ')' closes nothing
  | x)
  |  ^
""",
    """
formula, line 1, column 7: ')' closes nothing
  | Exp(x)) + y
  |       ^
""",
    """
formula, line 1, column 8: expected ')' for the '(' of line 1, column 4, got ']'
  | Exp(x,y]
  |        ^
""",
    """
formula, line 1, column 5: expected an operator, ',' or ')', got 'y'
  | f(x y)
  |     ^
  = a product is written '*'
""",
    """
formula, line 1, column 8: expected an operator, ',' or ')', got 'y'
  | f_1 (x y)
  |        ^
  = a product is written '*'
""",
    """
formula, line 1, column 4: expected an operator or ')', got 'y'
  | (x y)
  |    ^
  = a product is written '*'
""",
    """
formula, line 1, column 6: expected an operator, ',' or ']', got '3'
  | f([2 3])
  |      ^
  = a product is written '*'
""",
    """
formula, line 1, column 2: expected an operator or the end of the formula, got 'x'
  | 2x
  |  ^
  = a product is written '*'
""",
    """
formula, line 1, column 5: expected an operator or the end of the formula, got '('
  | f(x)(y)
  |     ^
  = a product is written '*'
""",
    """
formula, line 1, column 2: expected an operator or the end of the formula, got ','
  | x, y
  |  ^
""",
    """
formula, line 1, column 3: expected an operator or ')', got ','
  | (x, y)
  |   ^
""",
    """
formula, line 1, column 5: expected an expression, got ')'
  | f(x,)
  |     ^
""",
    """
formula, line 1, column 1: expected an expression, got '['
  | [2] + x
  | ^
  = a list stands only as an argument of an operator
""",
    """
formula, line 1, column 6: expected ',' or ')', got '<'
  | f([2]<3)
  |      ^
""",
    """
formula, line 1, column 9: expected ',' or ')', got '*'
  | f((2, 3)*x)
  |         ^
""",
    """
formula, line 1, column 7: comparisons do not chain
  | a < b < c
  |       ^
  = for 'a < b < c' write '(a < b) * (b < c)'
""",
    """
formula, line 1, column 8: comparisons do not chain
  | f(a|b<c>=d)
  |        ^~
  = for 'a < b < c' write '(a < b) * (b < c)'
""",
    """
formula, line 1, column 3: '=' has no meaning in a formula
  | x = 3
  |   ^
  = '==' compares; a declaration such as 'x = Vi(3)' belongs in the list of aliases
""",
    """
formula, line 1, column 21: '=' has no meaning in a formula
  | Sum_Reduction(x,axis=1)
  |                     ^
  = '==' compares; a declaration such as 'x = Vi(3)' belongs in the list of aliases
""",
    """
formula, line 1, column 2: unexpected character '^'
  | x^2
  |  ^
  = a power is written '**'
""",
    """
formula, line 1, column 3: unexpected character '\N{MINUS SIGN}'
  | x \N{MINUS SIGN} y
  |   ^
  = minus is written '-'
""",
    """
formula, line 1, column 2: unexpected character '.'
  | x.exp()
  |  ^
""",
    """
formula, line 1, column 7: the number is outside the range of double precision
  | x + f(1e400)
  |       ^~~~~
""",
]


@pytest.mark.parametrize("expected", ERRORS)
def test_errors_read_well(expected: str) -> None:
    text = expected.split("\n")[2].removeprefix("  |").removeprefix(" ")
    assert message(text) == expected.strip()


def test_errors_in_longer_texts() -> None:
    assert message("x\n  + # y\n+ z") == ("formula, line 2, column 5: unexpected character '#'\n  |   + # y\n  |     ^")
    assert message("f(x,\n  g(y\n") == "formula, line 2, column 4: '(' is never closed\n  |   g(y\n  |    ^"
    assert message("x +\n\n") == (
        "formula, line 1, column 4: expected an expression, got the end of the formula\n  | x +\n  |    ^"
    )
    assert message(" \n ").startswith("formula, line 1, column 1: the formula is empty")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "alias 2, line 1, column 1: the alias is empty"),
        ("x =", "alias 2, line 1, column 4: expected an expression, got the end of the alias"),
        ("= Vi(3)", "alias 2, line 1, column 1: expected an expression, got '='"),
        ("x = Vi(3", "alias 2, line 1, column 7: '(' is never closed"),
        ("x = y = z", "alias 2, line 1, column 7: expected an operator or the end of the alias, got '='"),
        ("x+1 = z", "alias 2, line 1, column 5: expected an operator or the end of the alias, got '='"),
    ],
)
def test_errors_in_aliases(text: str, expected: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse_alias(text, "alias 2")
    assert str(caught.value).split("\n")[0] == expected
    assert len(caught.value.diagnostics) == 1


@pytest.mark.parametrize("parse", [parse_formula, parse_alias])
@pytest.mark.parametrize("text", [None, 3, b"x", ["x"]])
def test_what_is_not_text_is_a_type_error(parse: object, text: object) -> None:
    with pytest.raises(TypeError, match="expected a str, got"):
        parse(text)  # type: ignore[operator]


# ---- size ----


def test_the_deepest_tree_can_be_handled() -> None:
    for text in ["+".join(["x"] * MAX_DEPTH), "f(" * (MAX_DEPTH - 1) + "x" + ")" * (MAX_DEPTH - 1)]:
        expr, again = parse_formula(text), parse_formula(text)
        assert max(depth for depth, _ in walk(expr)) == MAX_DEPTH
        assert expr == again and hash(expr) == hash(again) and repr(expr) == repr(again)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("+".join(["x"] * (MAX_DEPTH + 1)), 1),
        ("x" + "**x" * MAX_DEPTH, 3 * MAX_DEPTH - 2),
        ("-" * 5000 + "x", MAX_DEPTH + 1),
        ("f(" * 5000 + "x" + ")" * 5000, 2 * MAX_DEPTH + 1),
        ("f(" + "[" * 5000 + "]" * 5000 + ")", MAX_DEPTH + 2),
    ],
)
def test_a_deeper_tree_is_an_error(text: str, column: int) -> None:
    expected = f"column {column}: the expression is nested more than {MAX_DEPTH} levels deep"
    assert expected in message(text)
    with pytest.raises(FormulaError, match=expected):
        parse_alias(text)


def test_a_long_chain_is_told_how_to_become_shallow() -> None:
    assert "group it, as in (a + b) + (c + d)" in message("+".join(["x"] * 5000))
    assert "group it" not in message("f(" * 5000 + "x" + ")" * 5000)


def test_what_does_not_nest_may_be_as_long_as_it_likes() -> None:
    assert written(parse_formula("(" * 5000 + "x" + ")" * 5000)) == "x"
    assert written(parse_formula("+" * 5000 + "x")) == "x"
    call = parse_formula(f"f({','.join(['x'] * 5000)})")
    assert isinstance(call, Call) and len(call.args) == 5000
    assert "expected an expression, got the end of the formula" in message("(" * 5000)
    assert "column 5000: '(' is never closed" in message("(" * 5000 + "x")


# ---- the parser itself ----


def test_nothing_loads_lark_before_the_first_parse() -> None:
    code = "import sys, tritonkeops.frontend.parser; sys.exit('lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(parser.__file__).parents[2]).returncode == 0


def test_threads_may_share_the_parser() -> None:
    parser._lark.cache_clear()
    texts = [f"f{index}(x*{index}, [y]) + Exp(-x)**2" for index in range(64)]
    with ThreadPoolExecutor(16) as pool:
        shown = list(pool.map(lambda text: show(parse_formula(text)), texts))
    assert shown == [show(parse_formula(text)) for text in texts]


def test_the_grammar_is_found_in_a_package_and_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "__file__", str(tmp_path / "tritonkeops" / "frontend" / "parser.py"))
    with pytest.raises(FileNotFoundError, match="the grammar is neither at"):
        parser._grammar()
    for folder in (tmp_path, tmp_path / "tritonkeops"):
        (folder / "grammar").mkdir(parents=True)
        (folder / "grammar" / "formula.lark").write_text(folder.name)
        assert parser._grammar() == folder.name


def test_trees_survive_pickling_and_copying() -> None:
    alias = parse_alias("x = f([2, 0.5], -y, ())")
    assert pickle.loads(pickle.dumps(alias)) == copy.deepcopy(alias) == alias


# ---- any text ----

Shape = tuple[object, ...]  # a tree without its spans


def shape(expr: Expr) -> Shape:
    if isinstance(expr, Number):
        return ("number", expr.text)
    if isinstance(expr, Name):
        return ("name", expr.name)
    if isinstance(expr, Operation):
        return ("operation", expr.symbol, *map(shape, expr.args))
    if isinstance(expr, Call):
        return ("call", expr.callee, *map(shape, expr.args))
    return ("sequence", *map(shape, expr.items))


NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z_0-9]{0,3}", fullmatch=True)
NUMBERS = st.from_regex(r"([0-9]{1,3}\.?[0-9]{0,2}|\.[0-9]{1,3})([eE][+-]?[0-9]{1,2})?", fullmatch=True)
SPACES = st.sampled_from(["", " ", "\n", "\t "])
Text = tuple[str, Shape]


def operations(operands: st.SearchStrategy[Text]) -> st.SearchStrategy[Text]:
    def infix(left: Text, symbol: str, right: Text, gap: str) -> Text:
        return f"({left[0]}{gap}{symbol}{gap}{right[0]})", ("operation", symbol, left[1], right[1])

    symbols = st.sampled_from(["<", "<=", ">", ">=", "==", "!=", "|", "+", "-", "*", "/", "**"])
    prefix = st.builds(lambda text: (f"(-{text[0]})", ("operation", "-", text[1])), operands)
    return st.builds(infix, operands, symbols, operands, SPACES) | prefix


def calls(operands: st.SearchStrategy[Text]) -> st.SearchStrategy[Text]:
    def call(name: str, args: list[Text], gap: str) -> Text:
        text = f"{gap},{gap}".join(arg for arg, _ in args)
        return f"{name}{gap}({text})", ("call", name, *(tree for _, tree in args))

    def sequence(brackets: str, items: list[Text]) -> Text:
        comma = "," if brackets == "()" and len(items) == 1 else ""
        text = brackets[0] + ",".join(item for item, _ in items) + comma + brackets[1]
        return text, ("sequence", *(tree for _, tree in items))

    sequences = st.builds(sequence, st.sampled_from(["[]", "()"]), st.lists(operands, max_size=3))
    return st.builds(call, NAMES, st.lists(operands | sequences, max_size=3), SPACES)


LEAVES = st.builds(lambda text: (text, ("name", text)), NAMES) | st.builds(
    lambda text: (text, ("number", text)), NUMBERS
)
TREES = st.recursive(LEAVES, lambda operands: operations(operands) | calls(operands), max_leaves=20)


@given(TREES)
def test_a_tree_written_out_parses_back(tree: Text) -> None:
    text, expected = tree
    assert shape(parse_formula(text)) == expected


@given(TREES)
def test_spans_parse_back_to_their_nodes(tree: Text) -> None:
    for _, node in walk(parse_formula(tree[0])):
        if not isinstance(node, Sequence):
            assert shape(parse_formula(node.span.text)) == shape(node)


@given(st.text(alphabet=st.sampled_from("xfE12.e()[],+-*/|<>=!^ \n\t") | st.characters()))
def test_any_text_gives_a_tree_or_one_diagnostic(text: str) -> None:
    for parse in (parse_formula, parse_alias):
        try:
            parse(text)
        except FormulaError as error:
            (diagnostic,) = error.diagnostics
            assert diagnostic.span is not None
            assert 0 <= diagnostic.span.start <= diagnostic.span.stop <= len(text)
            assert str(error).startswith(f"{diagnostic.span.source.name}, line ")


@given(TREES, st.randoms(use_true_random=False))
def test_a_formula_with_a_typo_gives_a_tree_or_one_diagnostic(tree: Text, chance: random.Random) -> None:
    cut = chance.randrange(len(tree[0]))
    for text in (tree[0][:cut], tree[0][:cut] + chance.choice("()[],+*<=x2.") + tree[0][cut + 1 :]):
        try:
            parse_formula(text)
        except FormulaError as error:
            assert len(error.diagnostics) == 1
            assert not any(terminal in str(error) for terminal in ("LPAR", "RPAR", "COMMA", "$END", "POWER"))
