"""How many pairs per second a kernel will do on a GPU that need not be there, from its machine code.

Blocks are dealt evenly to the multiprocessors, and the one that gets most of them sets the time: it holds as many at a
time as registers, shared memory and warps allow. Rows beyond the ends of i and j are work for nothing. While a
multiprocessor holds so many blocks, a pair takes the longest of

- the clocks of tensor cores;
- those of the busiest other unit, over the part of them in which there is something to issue: a warp by itself can
  issue in about half of them, as it waits for results of its own in the others, and of w warps that share a scheduler
  none can in (1/2)^w of them;
- the two together, over the blocks: a block waits for its products, and the others use that time.

The half is an estimate, not compared with times yet. What the model leaves out: caches and memory bandwidth, branches
that are rarely taken (insertions into sorted lists), what happens before and after the loop, the merge of parts of j,
clocks under load. It ranks schedules of one formula, which mostly have these in common, and says little of the time of
a short call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from tritonkeops.backends.kernel import Layout
from tritonkeops.backends.triton.build import TritonKernel
from tritonkeops.backends.triton.offline import Compiled, compile_offline
from tritonkeops.backends.triton.sass import PerPair, Usage, disassemble, parse, per_pair, usage


class Device(NamedTuple):
    """A GPU; `lanes` is what a multiprocessor does per clock, in the units of `sass.lanes`, and `packed` how many
    float32 operations an instruction can hold. A multiprocessor holds so many `warps` and `blocks` at a time, in bytes
    of `shared` memory."""

    name: str
    multiprocessors: int
    hertz: float
    lanes: dict[str, float]
    packed: int = 1
    warps: int = 64
    blocks: int = 32
    shared: int = 228 << 10

    @property
    def block_shared(self) -> int:
        """Bytes of shared memory that a block may ask for."""
        return self.shared - _RESERVED


# Multiprocessors and clocks: NVIDIA's white papers of the A100, the H100 and the cards of 8.6 and 8.9, and the highest
# clocks that nvidia-smi shows on an H200 and a B200. Lanes: "Throughput of Native Arithmetic Instructions" in the CUDA
# programming guide; four schedulers issue a warp of 32 each. Memory: 128 bytes to or from the registers, also where all
# lanes read one word. Tensor cores: the datasheets' 312, 125, 362, 990 and 2250 TFLOP/s in 16 bits, which hold at lower
# clocks than these. Warps, blocks and shared memory: "Technical Specifications per Compute Capability", there.
_HOPPER: dict[str, float]
_HOPPER = {"issue": 128, "fp32": 128, "imad": 64, "alu": 64, "mufu": 16, "fp64": 64, "memory": 32, "tensor": 1894}
_AMPERE = _HOPPER | {"fp32": 64, "fp64": 32, "tensor": 1024}
_CARD = _HOPPER | {"fp64": 2, "tensor": 512}
DEVICES = {
    "cuda:80": Device("A100", 108, 1.41e9, _AMPERE, shared=164 << 10),
    "cuda:86": Device("A10", 72, 1.695e9, _CARD, warps=48, blocks=16, shared=100 << 10),
    "cuda:89": Device("L40S", 142, 2.52e9, _CARD, warps=48, blocks=24, shared=100 << 10),
    "cuda:90": Device("H200", 132, 1.98e9, _HOPPER),
    "cuda:100": Device("B200", 148, 1.965e9, _HOPPER | {"tensor": 3868}, packed=2),
}

_REGISTERS = 1 << 16  # of a multiprocessor, handed out to warps by 256
_SCHEDULERS = 4
_READY = 0.5  # of the clocks, in which a warp by itself can issue
_RESERVED = 1 << 10  # bytes of shared memory of each block, for the driver


@dataclass(frozen=True)
class Prediction:
    """What is known of a kernel before it runs. `resident` blocks share a multiprocessor; `occupancy` is the part of
    the warps that it could hold."""

    counted: PerPair
    usage: Usage
    resident: int
    occupancy: float
    pairs_per_second: float
    bound_by: str

    @property
    def fits(self) -> bool:
        """Whether the kernel can run, and keeps its values in registers."""
        return self.resident > 0 and not self.usage.spilled


def predict(kernel: TritonKernel, target: str, layout: Layout) -> Prediction:
    """Compile a kernel for one of DEVICES, count it, and predict a call of these sizes.

    Raises ValueError where its loop cannot be counted, and what Triton raises where it cannot be compiled.
    """
    device, num_warps = DEVICES[target], kernel.schedule.num_warps
    per_pair, used = counted(kernel, target)
    blocks = resident(used, num_warps, device)
    clocks = _clocks_of_a_call(kernel, layout, per_pair.lanes, blocks, device) if blocks else 0.0
    pairs = math.prod(layout.batch) * layout.rows * layout.cols
    rate = pairs * device.hertz / clocks if clocks else 0.0
    return Prediction(per_pair, used, blocks, blocks * num_warps / device.warps, rate, bound(per_pair.lanes, device)[1])


def counted(kernel: TritonKernel, target: str) -> tuple[PerPair, Usage]:
    """What a kernel's loop over tiles executes per pair, and what it occupies."""
    compiled, schedule = compile_offline(kernel, target), kernel.schedule
    pairs = schedule.block_i * schedule.block_j / (32 * schedule.num_warps)
    depth = 1 if schedule.block_sum and not kernel.emitted.held else 0  # inside a loop over blocks of a sum
    return per_pair(parse(disassemble(_cubin(compiled))), pairs, depth), _usage(compiled)


def _cubin(compiled: Compiled) -> bytes:
    cubin = compiled.asm["cubin"]
    assert isinstance(cubin, bytes)
    return cubin


def _usage(compiled: Compiled) -> Usage:
    """With the shared memory that the launch asks for, since the cubin knows of what the driver takes alone."""
    return usage(_cubin(compiled))._replace(shared=compiled.shared)


def bound(lanes: dict[str, float], device: Device) -> tuple[float, str]:
    """The most pairs per second, and the pipe that sets it."""
    clocks, pipe = max((taken / device.lanes[pipe], pipe) for pipe, taken in lanes.items())
    return device.multiprocessors * device.hertz / clocks, pipe


def resident(used: Usage, num_warps: int, device: Device) -> int:
    """How many blocks a multiprocessor holds at a time; 0 if not even one fits."""
    registers = num_warps * -(-32 * used.registers // 256) * 256
    shared = device.shared // (used.shared + _RESERVED)
    return min(device.blocks, device.warps // num_warps, _REGISTERS // max(1, registers), shared)


def hidden(warps: float) -> float:
    """The part of the clocks in which a multiprocessor that holds so many warps issues."""
    return 1 - math.pow(1 - _READY, warps / _SCHEDULERS)


def _clocks_of_a_call(
    kernel: TritonKernel, layout: Layout, lanes: dict[str, float], blocks: int, device: Device
) -> float:
    """Of the multiprocessor that gets most, with so many blocks at a time."""
    s = kernel.schedule
    programs, _, splits = kernel.parts(layout, device.multiprocessors)
    whole, rest = divmod(-(-programs * splits // device.multiprocessors), blocks)
    pairs = s.block_i * -(-layout.cols // s.block_j) * s.block_j / splits  # of a block
    clocks = whole * blocks * _clocks(lanes, blocks, s.num_warps, device)
    return pairs * (clocks + (rest * _clocks(lanes, rest, s.num_warps, device) if rest else 0))


def _clocks(lanes: dict[str, float], blocks: int, num_warps: int, device: Device) -> float:
    """Of a pair, on a multiprocessor that holds so many blocks."""
    busy = {pipe: taken / device.lanes[pipe] for pipe, taken in lanes.items()}
    products = busy.pop("tensor", 0.0)
    others = max(busy.values()) / hidden(blocks * num_warps)
    return max(products, others, (products + others) / blocks)
