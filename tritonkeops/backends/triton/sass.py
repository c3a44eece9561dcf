"""NVIDIA machine code: what a kernel executes in its hot loop, read from a cubin. No GPU is needed.

    code = parse(disassemble(cubin))
    found = loops(code)
    executed(hot_loop(found), found)    # the instructions of an iteration, and how often each is executed
    per_pair(code, pairs=64).lanes      # {"issue": 9.28, "fp32": 7, "mufu": 1, ...}

A loop's *path* is its cheapest way around: branches that lead to more work are not taken. What a kernel does rarely,
such as inserting a neighbour, lies on such a branch: it is in the loop's `body`, not on its path.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# Text -----------------------------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What a thread (registers, bytes of spilled values) and a block (bytes of shared memory) occupy."""

    registers: int
    spilled: int
    shared: int


def disassemble(cubin: bytes) -> str:
    """The listing of a cubin, as `cuobjdump -sass` prints it."""
    return _cuobjdump("-sass", cubin)


def usage(cubin: bytes) -> Usage:
    text = _cuobjdump("-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    registers, stack, shared, local = map(int, found.groups())
    return Usage(registers, stack + local, shared)


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool("cuobjdump"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tool(name: str) -> str:
    """A binary utility: Triton's wheel carries them, else the CUDA toolkit's on the PATH."""
    triton = find_spec("triton")
    folders = (triton and triton.submodule_search_locations) or []
    beside = next((Path(folder, "backends/nvidia/bin", name) for folder in folders), None)
    found = str(beside) if beside and beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: neither in Triton's wheel nor on the PATH")
    return found


def version_of(name: str) -> str:
    """The version that one of NVIDIA's tools prints."""
    text = subprocess.run([tool(name), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d[\d.]*)", text)
    return found[1] if found else text.strip()


# Instructions ---------------------------------------------------------------------------------------------------------

# The first kind whose pattern matches the beginning of an instruction. The throughputs of the CUDA programming guide
# apply to kinds, not to "integer" and "float": FMNMX, FSEL and FSETP run where integer additions run.
KINDS = {
    "move": r"(U?MOV|IMAD\.MOV|IMAD\.U32 \w+, RZ, RZ|HFMA2(\.MMA)? \w+, -RZ, RZ|CS2R)\b",
    "mma": r"([HIQBDO]G?MMA|UTC[HIQO]\w*MMA)\b",
    "mufu": r"(MUFU|I2F|F2I|F2F|FRND|POPC|FLO|BREV)\b",
    "fp64": r"D(ADD|MUL|FMA|SETP|MNMX)\b",
    "fp32": r"(F(ADD|MUL|FMA)2?|H(ADD|MUL|FMA)2)\b",
    "imad": r"(IMAD|IDP)\b",
    "local": r"(LDL|STL)\b",
    "shared": r"(LDS|STS|LDSM|STSM|ATOMS)\b",
    "global": r"(LDG|STG|LDGSTS|LD|ST|ATOM|ATOMG|RED|UTMA\w+|UBLKCP)\b",
    "tensor memory": r"(LDTM|STTM)\b",
    "constant": r"(LDC|LDCU|ULDC)\b",
    "shuffle": r"(SHFL|VOTE|VOTEU|MATCH|REDUX|CREDUX)\b",
    "barrier": r"(BAR|BSSY|BSYNC|BMOV|DEPBAR|LDGDEPBAR|\w*SYNC|SYNCS|WARPGROUP|MEMBAR|FENCE|UTCBAR|ELECT|NANOSLEEP)\b",
    "branch": r"(BRA|BRX|BRXU|JMP|JMX|CALL|RET|EXIT|BREAK|BPT|NOP)\b",
    "uniform": r"(U[A-Z]|R2UR|S2UR)",
    "alu": r"",
}

# The unit of a multiprocessor that limits a kind. Every instruction also takes a slot of issue.
PIPES = {
    "fp32": "fp32",
    "imad": "imad",
    "alu": "alu",
    "mufu": "mufu",
    "fp64": "fp64",
    "local": "memory",
    "shared": "memory",
    "global": "memory",
    "shuffle": "memory",
    "mma": "tensor",
}


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def kind(self) -> str:
        text = f"{self.opcode} {self.operands}"
        return next(kind for kind, pattern in KINDS.items() if re.match(pattern, text))

    @property
    def width(self) -> float:
        """How many lanes' worth of its pipe a thread takes: 32-bit words of memory, multiply-adds of tensor cores.

        Tensor cores are counted in 16-bit multiply-adds; tf32 costs two. Those of Blackwell (UTCHMMA) have their shape
        in a descriptor, which cannot be seen here: they count as 0.
        """
        kind, bits = self.kind, re.search(r"\.(64|128)\b", self.opcode)
        if kind == "mma":
            return _multiply_adds(self.opcode)
        if kind in ("local", "shared", "global") and bits:
            return int(bits[1]) // 32
        return 2 if re.match(r"F\w+2\b", self.opcode) else 1  # packed pairs of float32

    @property
    def target(self) -> int | None:
        """Where a branch or call leads."""
        if not re.match(r"(BRA|JMP|CALL)\b", self.opcode):
            return None
        found = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def conditions(self) -> list[str]:
        """The predicates that a branch depends on."""
        return re.findall(r"\bU?P\d", f"{self.predicate} {self.operands if self.target is not None else ''}")


def _multiply_adds(opcode: str) -> float:
    """Per thread. Four warps share one HGMMA, of 64 rows."""
    shape = re.search(r"\.(64)x(\d+)x(\d+)", opcode) or re.search(r"\.(16)(8)(\d+)", opcode)
    if not shape:
        return 0
    rows, columns, depth = map(int, shape.groups())
    return min(rows, 16) * columns * depth / 32 * (2 if "TF32" in opcode else 1)


def parse(listing: str) -> list[Instruction]:
    """The instructions of the first kernel in a listing."""
    kernel = "".join(re.split(r"\bFunction : ", listing)[:2])
    line = r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s)?\s*([A-Z][\w.]*)\s*([^;]*?)\s*;"
    found = re.findall(line, kernel, re.MULTILINE)
    return [Instruction(int(address, 16), predicate.strip(), *rest) for address, predicate, *rest in found]


def count(code: Iterable[Instruction]) -> Counter[str]:
    """Instructions by kind; of a Counter, each as often as it says."""
    found: Counter[str] = Counter()
    for instruction, times in Counter(code).items():
        found[instruction.kind] += times
    return found


def lanes(code: Iterable[Instruction]) -> dict[str, float]:
    """What a thread takes of issue and of each pipe, in lanes and clocks; of a Counter, as often as it says."""
    taken: dict[str, float] = {"issue": 0}
    for instruction, times in Counter(code).items():
        taken["issue"] += times
        if pipe := PIPES.get(instruction.kind):
            taken[pipe] = taken.get(pipe, 0) + instruction.width * times
    return taken


# Loops ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """A natural loop. `own` is its body without the loops inside it; `depth` 0 is not inside any other.

    `trips` is how often it goes around, where its bounds are constants.
    """

    header: int
    depth: int
    trips: int | None
    path: tuple[Instruction, ...]
    body: tuple[Instruction, ...]
    own: tuple[Instruction, ...]

    def contains(self, other: Loop) -> bool:
        return other.header != self.header and any(other.header == instruction.address for instruction in self.body)


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """All loops, in order of their headers."""
    after = _successors(code)
    dominators = _dominators(after)
    latches: dict[int, list[int]] = {}
    for node in dominators:
        for header in after[node]:
            if dominators[node] >> header & 1:
                latches.setdefault(header, []).append(node)
    bodies = {header: _body(header, ends, after, set(dominators)) for header, ends in sorted(latches.items())}
    return [_loop(code, header, latches[header], after, bodies) for header in bodies]


def hot_loop(found: Sequence[Loop]) -> Loop:
    """The loop over tiles: of those without constant bounds the one with most arithmetic, of equals the cheapest."""
    unbounded = [loop for loop in found if loop.trips is None]
    if not unbounded:
        raise ValueError("no loop whose bounds depend on sizes")
    return max(unbounded, key=lambda loop: (_arithmetic(executed(loop, found)), -len(loop.path)))


def executed(loop: Loop, found: Sequence[Loop]) -> Counter[Instruction]:
    """How often each instruction is executed in an iteration of a loop, along its path.

    Loops inside it count as often as they go around; those without constant bounds do not count.
    """
    own, addresses = set(loop.own), {instruction.address for instruction in loop.path}
    times = Counter(instruction for instruction in loop.path if instruction in own)
    for inner in _children(loop, found):
        if inner.trips and inner.header in addresses:
            times += _times(inner.trips, executed(inner, found))
    return times


def everything(loop: Loop, found: Sequence[Loop]) -> Counter[Instruction]:
    """The same where all branches are executed."""
    times = Counter(loop.own)
    for inner in _children(loop, found):
        times += _times(inner.trips or 0, everything(inner, found))
    return times


@dataclass(frozen=True)
class PerPair:
    """What a pair costs a thread on the path of the hot loop: instructions by kind, and lanes of each pipe.

    `skipped` are the instructions that the path leaves out, all branches taken.
    """

    kinds: dict[str, float]
    lanes: dict[str, float]
    skipped: float


def per_pair(code: Sequence[Instruction], pairs: float, depth: int | None = None) -> PerPair:
    """Count a kernel whose thread does so many pairs in an iteration of the loop over tiles, which is `depth` deep.

    If the assembler has unrolled that loop, several iterations count as one: an error to the side of a higher count.
    """
    found = loops(code)
    hot = hot_loop(found)
    if depth not in (None, hot.depth):
        raise ValueError(f"the loop at {hot.header:#x} does most, but it is {hot.depth} deep, not {depth}")
    on_path = {instruction.address for instruction in hot.path}
    for inner in found:
        if hot.contains(inner) and inner.trips is None and inner.header in on_path and _arithmetic(inner.body):
            raise ValueError(f"the loop at {inner.header:#x}, inside the hot loop, has no constant bounds")
    times = executed(hot, found)
    return PerPair(
        kinds={kind: round(n / pairs, 4) for kind, n in count(times).items()},
        lanes={pipe: round(n / pairs, 4) for pipe, n in lanes(times).items()},
        skipped=round((everything(hot, found) - times).total() / pairs, 4),
    )


def _arithmetic(code: Iterable[Instruction]) -> int:
    kinds = count(code)
    return sum(kinds[kind] * (_OF_MATRICES if kind == "mma" else 1) for kind in ("fp32", "fp64", "mufu", "mma"))


_OF_MATRICES = 100  # a product of matrices does at least as many operations for a thread


def _children(loop: Loop, found: Sequence[Loop]) -> list[Loop]:
    """The outermost loops inside a loop."""
    inside = [inner for inner in found if loop.contains(inner)]
    return [inner for inner in inside if not any(other.contains(inner) for other in inside)]


def _times(factor: int, times: Counter[Instruction]) -> Counter[Instruction]:
    return Counter({instruction: factor * n for instruction, n in times.items()})


# Control flow ---------------------------------------------------------------------------------------------------------


def _loop(
    code: Sequence[Instruction], header: int, ends: Sequence[int], after: list[list[int]], bodies: dict[int, set[int]]
) -> Loop:
    body = bodies[header]
    inner = [other for head, other in bodies.items() if head in body and head != header]
    own = tuple(code[node] for node in sorted(body.difference(*inner)))
    path = tuple(code[node] for node in _shortest(header, set(ends), after, body))
    return Loop(
        header=code[header].address,
        depth=sum(header in other for head, other in bodies.items() if head != header),
        trips=_trips(code[:header], own, path),
        path=path,
        body=tuple(code[node] for node in sorted(body)),
        own=own,
    )


def _trips(before: Sequence[Instruction], own: Sequence[Instruction], path: Sequence[Instruction]) -> int | None:
    """How often a loop goes around that counts from a constant, by a constant, to a constant."""
    for place in _deciding(own, path):
        counter, relation, last = _comparison(own[place])
        steps = [(n, step) for n, instruction in enumerate(own) if (step := _step(instruction, counter))]
        first = _start(before, counter)
        if len(steps) == 1 and first is not None:
            increment, step = steps[0]
            closed = relation in (("LE", "GT") if step > 0 else ("GE", "LT"))
            # A comparison that the limit itself passes, or of a value not stepped yet, is one more round.
            rounds = -((first - last) // step) + closed + (place < increment)
            return rounds if rounds > 0 else None
    return None


def _comparison(instruction: Instruction) -> tuple[str, str, int]:
    """The register that an instruction compares with a constant, how, and the constant; "" where it does not."""
    relation = instruction.opcode.split(".")[1] if instruction.opcode.count(".") else ""
    pattern = rf"U?P\w+, U?PT, (U?R\d+|{_NUMBER})(?:\.reuse)?, (U?R\d+|{_NUMBER}), U?PT"
    left, right = found.groups() if (found := re.fullmatch(pattern, instruction.operands)) else ("", "")
    if re.fullmatch(_NUMBER, left):
        left, right = right, left
        relation = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(relation, relation)
    constant = re.fullmatch(_NUMBER, right) and not re.fullmatch(_NUMBER, left)
    return (left, relation, _number(right)) if constant else ("", "", 0)


def _deciding(own: Sequence[Instruction], path: Sequence[Instruction]) -> Iterator[int]:
    """Where the comparisons are that the last condition on a loop's path depends on, the last first."""
    last = next((branch for branch in reversed(path) if branch.kind == "branch" and branch.conditions), path[-1])
    wanted = set(last.conditions)
    for place in reversed(range(own.index(last) if last in own else 0)):
        written = own[place].operands.split(", ")[:2]
        if wanted.intersection(written) and re.match(r"U?(ISETP|PLOP3)\b", own[place].opcode):
            yield place
            read = own[place].operands.split(", ", 2)[-1]
            wanted = wanted.difference(written).union(re.findall(r"\bU?P\d", read))


_NUMBER = r"-?0x[0-9a-f]+|U?RZ"


def _number(text: str) -> int:
    """A 32-bit integer; some instructions spell negative ones as large ones."""
    value = 0 if text.endswith("RZ") or text == "0, 0" else int(text, 16)
    return value - (1 << 32) if value >= 1 << 31 else value


def _step(instruction: Instruction, counter: str) -> int | None:
    """What an instruction adds to a counter."""
    added = rf"{counter}, (?:U?P\w+, )*{counter}(?:\.reuse)?, ({_NUMBER})(, U?RZ)?"
    found = re.fullmatch(added, instruction.operands)
    return _number(found[1]) if found and re.match(r"U?IADD3?|VIADD", instruction.opcode) else None


def _start(before: Sequence[Instruction], counter: str) -> int | None:
    """The constant that the last instruction which writes a counter writes."""
    even = re.sub(r"\d+", lambda number: str(int(number[0]) & ~1), counter)
    for instruction in reversed(before):
        written, _, source = instruction.operands.partition(", ")
        if written == counter or (instruction.opcode == "CS2R" and written == even):
            constant = re.fullmatch(rf"(?:-?U?RZ, U?RZ, )?({_NUMBER}|SRZ|0, 0)", source)  # 0, 0: two halves
            return _number(constant[1]) if constant and instruction.kind == "move" else None
    return None


def _successors(code: Sequence[Instruction]) -> list[list[int]]:
    """What may follow each instruction, by position. Where an indirect branch (BRX) leads is not known.

    BSSY and BSYNC wait for the other threads of a warp but go on to the next instruction.
    """
    position = {instruction.address: n for n, instruction in enumerate(code)}
    after = []
    for n, instruction in enumerate(code):
        target = position.get(instruction.target) if instruction.target is not None else None
        leaves = re.match(r"(BRA|BRX|BRXU|JMP|JMX|CALL|RET|EXIT|BPT)\b", instruction.opcode) is not None
        if target is not None and instruction.opcode.startswith("CALL") and _returns(code[target:]):
            target, leaves = None, False
        falls_through = not leaves or instruction.conditions or instruction.opcode.startswith("BRA.DIV")
        following = [n + 1] if falls_through and n + 1 < len(code) else []
        after.append([*following, target] if target is not None else following)
    return after


def _returns(callee: Sequence[Instruction]) -> bool:
    """Whether a call comes back: a far jump is spelled as a call too, but leads to the end of the kernel."""
    ends = (instruction.opcode for instruction in callee if re.match(r"(RET|EXIT)\b", instruction.opcode))
    return next(ends, "").startswith("RET")


def _dominators(after: list[list[int]]) -> dict[int, int]:
    """For each node that is reached, the nodes on every way to it, as bits."""
    order = _reverse_postorder(after)
    before: dict[int, list[int]] = {node: [] for node in order}
    for node in order:
        for successor in after[node]:
            before[successor].append(node)
    everything = (1 << len(after)) - 1
    dominators = dict.fromkeys(order, everything) | {0: 1}
    changed = True
    while changed:
        changed = False
        for node in order[1:]:
            common = everything
            for predecessor in before[node]:
                common &= dominators[predecessor]
            common |= 1 << node
            changed |= common != dominators[node]
            dominators[node] = common
    return dominators


def _reverse_postorder(after: list[list[int]]) -> list[int]:
    finished: list[int] = []
    seen, stack = {0}, [(0, iter(after[0]))]
    while stack:
        node, successors = stack[-1]
        successor = next(successors, None)
        if successor is None:
            finished.append(node)
            stack.pop()
        elif successor not in seen:
            seen.add(successor)
            stack.append((successor, iter(after[successor])))
    return finished[::-1]


def _body(header: int, ends: Sequence[int], after: list[list[int]], reached: set[int]) -> set[int]:
    """The nodes that reach a loop's ends without passing its header."""
    before: dict[int, list[int]] = {}
    for node in reached:
        for successor in after[node]:
            before.setdefault(successor, []).append(node)
    body, todo = {header}, list(ends)
    while todo:
        node = todo.pop()
        if node not in body:
            body.add(node)
            todo += before.get(node, [])
    return body


def _shortest(header: int, ends: set[int], after: list[list[int]], body: set[int]) -> list[int]:
    """The way from the header to an end of the loop with the fewest instructions."""
    came_from: dict[int, int] = {}
    queue = deque([header])
    while queue[0] not in ends:
        node = queue.popleft()
        for successor in after[node]:
            if successor in body and successor != header and successor not in came_from:
                came_from[successor] = node
                queue.append(successor)
    path = [queue[0]]
    while path[-1] != header:
        path.append(came_from[path[-1]])
    return path[::-1]
