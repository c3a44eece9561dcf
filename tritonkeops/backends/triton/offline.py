"""Compilation for devices that are not there: what Triton and its assembler make of a kernel, as text."""

from __future__ import annotations

from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget

from tritonkeops.backends.triton.build import TritonKernel, interpreted
from tritonkeops.backends.triton.sass import disassemble

_STAGES = {"cuda": ("ttir", "ttgir", "llir", "ptx", "sass"), "hip": ("ttir", "ttgir", "llir", "amdgcn")}


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel: the text (or, for "cubin", the bytes) of each of Triton's stages, by name, and the bytes of
    shared memory that a launch asks for."""

    name: str
    num_warps: int
    shared: int
    asm: dict[str, str | bytes]


def compile_offline(kernel: TritonKernel, device: str, role: str = "reduce", split: bool = False) -> Compiled:
    """Compile one kernel of a module ("pack_i", "pack_j", "reduce" or "merge") for "cuda:90", "hip:gfx942" ...

    Raises ValueError for an unknown device, and RuntimeError under TRITON_INTERPRET=1, where nothing is compiled.
    """
    target = _target(device)
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET=1 is set: Triton interprets kernels and cannot compile them")
    options = kernel.options(role)
    done = triton.compile(kernel.source(role, split), target=target, options=options)
    asm = {stage: done.asm[stage] for stage in done.asm}
    return Compiled(done.metadata.name, options["num_warps"], done.metadata.shared, asm)


def assembly(kernel: TritonKernel, stage: str, device: str) -> str:
    """The text of a stage of the main kernel. Raises ValueError for a stage that the device does not have."""
    backend = _target(device).backend
    if stage not in _STAGES[backend]:
        raise ValueError(f"explain: {device} has the stages {', '.join(_STAGES[backend])}; got {stage!r}")
    compiled = compile_offline(kernel, device)
    text = compiled.asm["cubin" if stage == "sass" else stage]
    return text if isinstance(text, str) else disassemble(text)


def _target(name: str) -> GPUTarget:
    backend, _, arch = name.partition(":")
    if backend == "cuda" and arch.isdigit():
        return GPUTarget("cuda", int(arch), 32)
    if backend == "hip" and arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise ValueError(f"target={name!r}: expected cuda:CAPABILITY such as 'cuda:90', or hip:ARCH such as 'hip:gfx942'")
