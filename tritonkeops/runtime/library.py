"""The one operation that PyTorch knows of us, and every private name of PyTorch that we use.

A reduction is opaque to PyTorch: `tritonkeops::reduce` takes the text of a Reducer, so that one operation serves every
formula, and its derivatives are the same operation with other texts. It is registered with `define` and `impl`, with a
fake, a batching rule, and a kernel at the dispatch key Autograd that is built on _SingleLevelFunction: the documented
ways (torch.library.custom_op, register_autograd) lose forward-mode derivatives and the compiled torch.func transforms
without a word (https://github.com/pytorch/pytorch/issues/168393, 170834, 179652, 192985). The private names exist
unchanged from torch 2.11 to 2.15; where one is missing, the import of this module fails.

`reduce` is the entry for everyone: in ordinary eager code it goes to the kernel without the dispatcher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import (
    _AutoDispatchBelowAutograd,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.nn import Parameter

from tritonkeops.runtime.call import GPUS
from tritonkeops.runtime.reducer import Adjoint, Reducer

Function = TypeVar("Function", bound=Callable[..., Any])

_library = torch.library.Library("tritonkeops", "DEF")  # type: ignore[no-untyped-call]
_library.define("reduce(Tensor[] args, Tensor[] pattern, str text) -> Tensor[]")  # type: ignore[no-untyped-call]
_operation = torch.ops.tritonkeops.reduce.default


def constant_for_dynamo(function: Function) -> Function:
    """Have Dynamo call a method for real and keep what it gives, a constant.

    torch.compiler.assume_constant_result does that and no more, but imports Dynamo, which takes seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def traced(args: Sequence[Any]) -> bool:
    """Whether someone looks on: Dynamo, torch.func, forward mode, a mode, or a subclass of Tensor."""
    if (
        torch.compiler.is_compiling()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
    ):
        return True
    return any(type(x) is not Tensor and type(x) is not Parameter and isinstance(x, Tensor) for x in args)


def records(args: Sequence[Any]) -> bool:
    """Whether autograd is to record a call."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)


def reduce(text: str, args: Sequence[Tensor], pattern: Sequence[Tensor] = ()) -> list[Tensor]:
    """The outputs of a differentiable reduction, or of one that finds indices, with all that PyTorch does to them."""
    if traced(args):
        return _operation(list(args), list(pattern), text)  # type: ignore[no-any-return]
    reducer = Reducer.read(text)
    if records(args) and not _finds(reducer):
        return [Reduce.apply(reducer, pattern, *args)]  # type: ignore[no-untyped-call]
    return reducer.launch(args, pattern)


def _finds(reducer: Reducer) -> bool:
    """Whether the outputs hold indices: such reductions are differentiated by the formula's values there."""
    return "index" in reducer.node.op.outputs


# Derivatives ------------------------------------------------------------------------------------------------------


def _gradients(
    adjoints: Sequence[Adjoint], operands: Sequence[Tensor], pattern: Sequence[Tensor], shapes: Sequence[torch.Size]
) -> dict[int, Tensor]:
    """The gradients by position. `operands` are the arguments, the result and its cotangent; only those that the
    adjoints pick are looked at. `shapes` are the arguments'."""
    found: dict[int, Tensor] = {}
    for adjoint in adjoints:
        (gradients,) = reduce(adjoint.text, [operands[n] for n in adjoint.picks], pattern)
        found |= _apart(adjoint, gradients, shapes)
    return found


def _apart(adjoint: Adjoint, gradients: Tensor, shapes: Sequence[torch.Size]) -> dict[int, Tensor]:
    """Gradients that stand side by side, by position, in their arguments' shapes."""
    found = {}
    for part in adjoint.parts:
        each = gradients if part.dim == gradients.shape[-1] else gradients.narrow(-1, part.start, part.dim)
        each = each.sum(-2) if part.parameter else each
        shape = shapes[part.position]
        found[part.position] = each.reshape(shape) if each.ndim < len(shape) else each.sum_to_size(shape)
    return found


def _in_order(
    found: dict[int, Tensor], needs: Sequence[bool], shapes: Sequence[torch.Size], like: Tensor
) -> list[Tensor | None]:
    """The gradients of all arguments: zeros where a wanted one has no formula."""
    return [
        found[n] if n in found else like.new_zeros(shape) if need else None
        for n, (need, shape) in enumerate(zip(needs, shapes, strict=True))
    ]


class Reduce(torch.autograd.Function):
    """The reduction in plain eager code.

    A scalar result is computed together with the gradients that are indexed like it, but for their factor, the
    cotangent. Only what the wanted gradients read is saved; `ctx.kept` numbers it among the arguments and the result.
    """

    @staticmethod
    def forward(ctx: Any, reducer: Reducer, pattern: Sequence[Tensor], *args: Tensor) -> Tensor:
        """The result."""
        needs, count = ctx.needs_input_grad[2:], len(args)
        adjoints = reducer.adjoints(needs) if reducer.differs else ()
        joint = reducer.joint(needs)
        slopes: list[Tensor] = []
        if joint is None:
            (result,) = reducer.launch(args, pattern)
        else:
            (both,) = Reducer.read(joint.text).launch(args, pattern)
            result, slopes = both[..., -1:].contiguous(), [both[..., :-1]]
        ctx.reducer, ctx.adjoints, ctx.joint, ctx.count, ctx.pairs = reducer, adjoints, joint, count, len(pattern)
        ctx.shapes = [x.shape for x in args]
        read = {n for each in adjoints for n in each.picks} | ({count} if joint and not reducer.linear else set())
        ctx.kept = sorted(read - {count + 1})
        ctx.save_for_backward(*pattern, *[args[n] if n < count else result for n in ctx.kept], *slopes)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        """The gradients; where they are to be differentiated again, all by reductions."""
        ctx.reducer.check_derivative()
        tensors = ctx.saved_tensors  # to be read once: checkpointing computes them again
        pattern, saved = tensors[: ctx.pairs], tensors[ctx.pairs :]
        operands: list[Any] = [None] * ctx.count + [None, cotangent]
        for n, tensor in zip(ctx.kept, saved, strict=False):
            operands[n] = tensor
        found: dict[int, Tensor] = {}
        adjoints, joint = ctx.adjoints, ctx.joint
        if joint is not None and not torch.is_grad_enabled():
            gradients = cotangent * saved[-1]
            if not ctx.reducer.linear:  # nothing moves the logarithm of a sum of zeros
                gradients = gradients.masked_fill(operands[ctx.count] == -math.inf, 0)
            found = _apart(joint, gradients, ctx.shapes)
            adjoints = [each for each in adjoints if each.axis != joint.axis]
        found |= _gradients(adjoints, operands, pattern, ctx.shapes)
        return None, None, *_in_order(found, ctx.needs_input_grad[2:], ctx.shapes, cotangent)


class _Level(_SingleLevelFunction):
    """The reduction at one level of whatever transforms surround it."""

    @staticmethod
    def forward(ctx: Any, text: str, count: int, modes: tuple[bool, bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs; the first `count` tensors are the arguments, the others the pattern.

        A Function's forward runs without recording. That is for this level; outer ones go by the caller's `modes`.
        """
        reverse, forward = modes
        with torch.set_grad_enabled(reverse), forward_ad._set_fwd_grad_enabled(forward), _AutoDispatchBelowAutograd():
            outputs = tuple(_operation(list(tensors[:count]), list(tensors[count:]), text))
        ctx.text, ctx.count, ctx.forward_mode = text, count, forward
        ctx.save_for_backward(*tensors, outputs[0])
        ctx.save_for_forward(*tensors, outputs[0])
        if _finds(Reducer.read(text)):
            ctx.mark_non_differentiable(*outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Tensor) -> tuple[Any, ...]:
        """The gradients."""
        *tensors, result = ctx.saved_tensors
        args, pattern = tensors[: ctx.count], tensors[ctx.count :]
        needs, shapes = tuple(ctx.needs_input_grad[3 : 3 + ctx.count]), [x.shape for x in args]
        found = _gradients(Reducer.read(ctx.text).adjoints(needs), [*args, result, cotangent], pattern, shapes)
        return None, None, None, *_in_order(found, needs, shapes, cotangent), *(None for _ in pattern)

    @staticmethod
    def jvp(ctx: Any, text: None, count: None, modes: None, *tangents: Any) -> tuple[Tensor, ...]:
        """The tangent of the result.

        PyTorch calls this with forward mode off, for outer levels too, whose tangents would be 0 without a word.
        """
        moved = tangents[: ctx.count]
        derived = Reducer.read(ctx.text).tangent(tuple(t is not None for t in moved))
        with forward_ad._set_fwd_grad_enabled(ctx.forward_mode):
            *tensors, result = map(_primal, ctx.saved_tensors)
            args, pattern = tensors[: ctx.count], tensors[ctx.count :]
            operands = [*args, result, *moved]
            (tangent,) = reduce(derived.text, [operands[n] for n in derived.picks], pattern)
            return (tangent.expand_as(result),)


def _primal(x: Tensor) -> Tensor:
    """A tensor without its tangent at this level; what torch calls level 0 is the innermost."""
    return forward_ad.unpack_dual(x, level=0).primal  # type: ignore[no-untyped-call, no-any-return]


# Registrations ----------------------------------------------------------------------------------------------------


def _launch(args: list[Tensor], pattern: list[Tensor], text: str) -> list[Tensor]:
    return Reducer.read(text).launch([x.detach() for x in args], pattern)


def _record(args: list[Tensor], pattern: list[Tensor], text: str) -> list[Tensor]:
    modes = (torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled())
    with enable_single_level_autograd_function():
        return list(_Level.apply(text, len(args), modes, *args, *pattern))  # type: ignore[attr-defined]


def _fake(args: list[Tensor], pattern: list[Tensor], text: str) -> list[Tensor]:
    return Reducer.read(text).caller.empty(args)


def _batch(
    info: Any, in_dims: tuple[Any, ...], args: list[Tensor], pattern: list[Tensor], text: str
) -> tuple[list[Tensor], list[int]]:
    """A mapped dimension becomes the first batch dimension of the arguments that have it."""
    if any(d is not None for d in in_dims[1]):
        raise NotImplementedError("vmap over ranges or neighbours: expected one pattern for all")
    dims = in_dims[0]
    if info.batch_size == 1:  # as a batch of one, a parameter could not be told from one without a batch
        alone = [x if d is None else x.select(d, 0) for x, d in zip(args, dims, strict=True)]
        outputs = [x.unsqueeze(0) for x in _operation(alone, pattern, text)]
        return outputs, [0] * len(outputs)
    tails = [2 if v.axes else 1 for v in Reducer.read(text).variables]
    most = max(x.ndim - (d is not None) - tail for x, d, tail in zip(args, dims, tails, strict=True))
    moved = []
    for x, d, tail in zip(args, dims, tails, strict=True):
        if d is not None:
            x = x.movedim(d, 0)
            x = x.reshape(x.shape[0], *[1] * (most - (x.ndim - 1 - tail)), *x.shape[1:])
        moved.append(x)
    outputs = _operation(moved, pattern, text)
    return outputs, [0] * len(outputs)


for _kind in ("cpu", *GPUS):
    _library.impl("reduce", _launch, _kind.upper())  # type: ignore[no-untyped-call]
_library.impl("reduce", _record, "Autograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("tritonkeops::reduce", _fake, lib=_library)
torch.library.register_vmap("tritonkeops::reduce", _batch, lib=_library)
