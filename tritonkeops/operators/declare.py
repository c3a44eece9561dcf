"""How operators and reductions are declared: one entry each, into the one registry `words`."""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tritonkeops.formula.ir import (
    Const,
    IllTyped,
    Node,
    Number,
    Operator,
    ReductionOp,
    Static,
    as_node,
    infix,
    words,
)

Partials = Callable[..., Any]


def expect(condition: bool, message: Callable[[], str], operand: int = 0) -> None:
    """What a dimension rule demands; `operand` is the place of the argument at fault.

    The message is made where it is needed only: formulas share their parts, and written out they may be very long.
    """
    if not condition:
        raise IllTyped(message(), operand)


def _parameters(function: Callable[..., Any], skip: int) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)[skip:]


def _defaults(function: Callable[..., Any]) -> tuple[Any, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.default for p in parameters if p.default is not inspect.Parameter.empty)


def _register(operator: Operator) -> Operator:
    if operator.name in words:
        raise ValueError(f"operator {operator.name!r} is declared twice")
    words[operator.name] = operator
    if operator.symbol:
        infix[operator.symbol, len(operator.operands)] = operator
    return operator


def broadcast(op: Operator, args: Sequence[Node], static: Sequence[Static] = ()) -> int:
    """KeOps' rule for element-wise operators: equal dims, or scalars among them."""
    dims = {arg.dim for arg in args} - {1}
    if len(dims) > 1:
        found = ", ".join(f"{name} = {arg!r} has dim {arg.dim}" for name, arg in zip(op.operands, args, strict=True))
        raise IllTyped(f"{op.name}: {found}; expected equal dims, or scalars (dim 1) among them")
    return dims.pop() if dims else 1


def sum_to(dim: int, value: Node) -> Node:
    """The adjoint of broadcasting a scalar: cotangents of its copies add up."""
    return words["Sum"](value) if dim == 1 and value.dim > 1 else value  # type: ignore[operator]


def _chain(partials: Partials, arity: int) -> Callable[..., Sequence[Node]]:
    """vjp of an element-wise operator from its partial derivatives."""

    def vjp(e: Node, *args: Any) -> Sequence[Node]:
        derivatives = partials(*args)
        derivatives = derivatives if isinstance(derivatives, tuple) else (derivatives,)
        return [sum_to(arg.dim, e * as_node(d)) for arg, d in zip(args[:arity], derivatives, strict=True)]

    return vjp


def elementwise(
    name: str,
    scalar: Callable[..., Any],
    partials: Partials,
    doc: str,
    *,
    static: tuple[str, ...] = (),
    symbol: str | None = None,
    dim: Callable[[Operator, tuple[Node, ...], tuple[Static, ...]], int] = broadcast,
    domain: tuple[float, float] | tuple[tuple[float, float], ...] = (-2.0, 2.0),
    example: tuple[Static, ...] = (),
) -> Operator:
    """Declare an element-wise operator.

    `scalar(m, x, ..., *static)` is its meaning on one component; `partials(f, ..., *static)` the partial derivative
    by each operand, as formulas or numbers; `dim` its dimension rule, where that checks more than `broadcast`; `domain`
    where tests may evaluate it (one range, or one per operand); `example` static parameters for them.
    """
    operands = tuple(p for p in _parameters(scalar, 1) if p not in static)
    ranges = domain if isinstance(domain[0], tuple) else (domain,) * len(operands)
    return _register(
        Operator(
            name,
            operands,
            static,
            dim,
            doc,
            scalar=scalar,
            vjp=_chain(partials, len(operands)),
            symbol=symbol,
            domain=ranges,
            example=example,
        )
    )


def componentwise(
    name: str,
    dim: Callable[..., int],
    at: Callable[..., Any],
    vjp: Callable[..., Sequence[Node | Number]],
    doc: str,
    *,
    static: tuple[str, ...] = (),
    example: tuple[Static, ...] = (),
    example_dims: tuple[int, ...] = (),
) -> Operator:
    """Declare an operator by component k of its result: `at(m, k, f, ..., *static)`, f[k] being components.

    `dim(f, ..., *static)` is its dimension rule on nodes and raises IllTyped. Arguments that `at` has a default for are
    optional.
    """
    operands = tuple(p for p in _parameters(at, 2) if p not in static)

    def infer(op: Operator, args: tuple[Node, ...], values: tuple[Static, ...]) -> int:
        return dim(*args, *values)

    return _register(
        Operator(
            name,
            operands,
            static,
            infer,
            doc,
            at=at,
            vjp=vjp,
            defaults=_defaults(at),
            example=example,
            example_dims=example_dims,
        )
    )


def derived(
    name: str,
    expand: Callable[..., Node],
    doc: str,
    *,
    dim: Callable[..., int] | None = None,
    static: tuple[str, ...] = (),
    symbol: str | None = None,
    example: tuple[Static, ...] = (),
    example_dims: tuple[int, ...] = (),
) -> Operator:
    """Declare an operator as a formula of others: its dims, meaning and derivative are the formula's.

    A dimension rule of its own, `dim(f, ..., *static)`, says more where operands do not fit, and spares the formula.
    """
    operands = tuple(p for p in _parameters(expand, 0) if p not in static)

    def infer(op: Operator, args: tuple[Node, ...], values: tuple[Static, ...]) -> int:
        if dim:
            return dim(*args, *values)
        try:
            return expand(*args, *values).dim
        except IllTyped as error:
            if not operands:
                raise
            found = ", ".join(f"{n} = {arg!r} has dim {arg.dim}" for n, arg in zip(operands, args, strict=True))
            raise IllTyped(f"{name}: {found}; in it, {error}") from error

    return _register(
        Operator(
            name,
            operands,
            static,
            infer,
            doc,
            expand=expand,
            defaults=_defaults(expand),
            symbol=symbol,
            example=example,
            example_dims=example_dims,
        )
    )


def structural(
    name: str,
    dim: Callable[..., int],
    doc: str,
    *,
    expand: Callable[..., Node] | None = None,
    summed: tuple[str, ...] = (),
    example_dims: tuple[int, ...] = (),
) -> Operator:
    """Declare a word that a pass replaces, or its expansion: it asks for derivatives of its operands.

    `dim(F, ...)` is its dimension rule, whose defaults are the word's; `summed` names operands that may be tuples.
    """

    def infer(op: Operator, args: tuple[Node, ...], values: tuple[Static, ...]) -> int:
        return dim(*args)

    operands, defaults = _parameters(dim, 0), _defaults(dim)
    return _register(
        Operator(
            name,
            operands,
            (),
            infer,
            doc,
            expand=expand,
            defaults=defaults,
            summed=summed,
            example_dims=example_dims,
        )
    )


def reduction(name: str, **declaration: Any) -> ReductionOp:
    """Declare a reduction; see ReductionOp for its parts. `compensated` and `base2` hold those of its twins."""
    op = words[name + "_Reduction"] = _reduction_op(name, declaration)
    return op


def _reduction_op(name: str, declaration: dict[str, Any]) -> ReductionOp:
    twins = {
        twin: _reduction_op(name + suffix, declaration[twin])
        for twin, suffix in (("compensated", ""), ("base2", "_base2"))
        if twin in declaration
    }
    return ReductionOp(name=name, **declaration | twins)


def _named(word: str) -> Operator | ReductionOp:
    return words[word]


# Words are pickled by name. Unpickling looks for `_named`, and so imports this package, which fills the registry.
copyreg.pickle(Operator, lambda op: (_named, (op.name,)))  # type: ignore[arg-type, return-value]
copyreg.pickle(ReductionOp, lambda op: (_named, (f"{op.name}_Reduction",)))  # type: ignore[arg-type, return-value]


def zero_like(node: Node) -> Node:
    """Zeros of a node's dim."""
    return Const(0, node.dim)
