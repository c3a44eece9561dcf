"""Time the peers on a case, side by side.

They take turns (ours, peer, ours, peer ...) for some rounds, so that all see the same machine; the fastest
call of each counts.
"""

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bench.cases import Case
from bench.first_call import seconds_in_new_process
from bench.peers import OURS, PEERS, Computation, installed

SHORTEST, LONGEST = 0.05, 2.0  # seconds: a turn repeats calls up to the first; sizes halve above the second
FEWEST = 1000  # rows that sizes do not halve below: shorter calls would measure the overhead of a call
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass
class Comparison:
    """What one case gave: seconds of one call for each peer that ran, and why the others did not."""

    case: Case
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        return self.case.M * self.case.N

    def ratio(self, peer: str) -> float | None:
        """How many times longer than ours a peer takes."""
        if OURS not in self.seconds or peer not in self.seconds:
            return None
        return self.seconds[peer] / self.seconds[OURS]


def compare(case: Case, quick: bool = False) -> Comparison:
    """Measure one case, with every peer that applies."""
    rounds = 2 if quick else 5
    if case.measure == "first call":
        return compare_first_calls(case, rounds=1 if quick else 2)
    if quick and case.measure == "throughput":
        case = replace(case, M=case.M // 2, N=case.N // 2)
    comparison, computations = prepare(case)
    for _ in range(rounds):
        for peer, computation in computations.items():
            best = comparison.seconds.get(peer, float("inf"))
            comparison.seconds[peer] = min(best, fastest_call(computation))
    return comparison


def prepare(case: Case) -> tuple[Comparison, dict[str, Computation]]:
    """Build all kernels, check all values, and halve the sizes until the slowest call is short enough."""
    comparison = Comparison(case)
    inputs = case.inputs()
    computations = {}
    slowest = 0.0
    for peer in (OURS, *case.peers):
        computation = attempt(comparison, peer, inputs)
        if computation is not None:
            computations[peer] = computation
            slowest = max(slowest, min(timed(computation), timed(computation)))
    if slowest > LONGEST and case.M // 2 >= FEWEST:
        return prepare(replace(case, M=case.M // 2, N=case.N // 2))
    return comparison, computations


def attempt(comparison: Comparison, peer: str, inputs: list[Tensor]) -> Computation | None:
    """A peer's computation, run once and checked; or None, and a word why."""
    if not installed(peer):
        comparison.failures[peer] = "not installed"
        return None
    case = comparison.case
    try:
        computation = PEERS[peer](case, inputs)
        error = case.error(computation(), inputs)
    except Exception as exception:  # a peer that cannot do a case is a result, not the end of the run
        comparison.failures[peer] = f"{type(exception).__name__}: {exception}"
        return None
    comparison.errors[peer] = error
    if not error <= TOLERANCE[case.dtype]:
        comparison.failures[peer] = f"WRONG by {error:.1e}"
        return None
    return computation


def compare_first_calls(case: Case, rounds: int) -> Comparison:
    comparison = Comparison(case)
    peers = [peer for peer in (OURS, *case.peers) if installed(peer)]
    comparison.failures = {peer: "not installed" for peer in (OURS, *case.peers) if peer not in peers}
    unique = time.time_ns() // 1000 % 1_000_000_000
    for number in range(rounds):
        for peer in peers:
            try:
                seconds = seconds_in_new_process(peer, case, unique + number)
            except RuntimeError as error:
                comparison.failures[peer] = f"failed: {error}"
                continue
            comparison.seconds[peer] = min(seconds, comparison.seconds.get(peer, seconds))
    return comparison


def fastest_call(computation: Computation) -> float:
    """The shortest of as many calls as fill a turn."""
    end = time.perf_counter() + SHORTEST
    best = timed(computation)
    while time.perf_counter() < end:
        best = min(best, timed(computation))
    return best


def timed(computation: Computation) -> float:
    start = time.perf_counter()
    computation()
    return time.perf_counter() - start
