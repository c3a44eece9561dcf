"""Everything that only a GPU can tell, in one call of at most ten minutes.

    python -m bench.gpu [--out bench/results] [--seconds 570] [--cases gaussian_d3,...] [--skip-tests]

In this order: the tests marked `gpu`; each case against pykeops, torch eager and torch.compile where they run; the
counts' prediction (`bench.machine_code`) against the time, at the clock seen under load. One line of JSON per case goes
to gpu.jsonl in the output folder, with device, driver, versions and commit.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import CASES, Case
from bench.machine_code import NEEDED, kernel_of
from bench.peers import OURS, PEERS, installed
from bench.report import environment, rounded
from tritonkeops.backends.triton.predict import DEVICES, bound, counted

CHUNK_BYTES = 1 << 30  # of a dense block of rows, for the peers that store one
SHORTEST = 0.3  # seconds: calls are repeated for so long
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-4, torch.float64: 1e-10}


@dataclass
class Outcome:
    """What one case gave: pairs per second of each peer, errors against float64, and why a peer did not run."""

    case: Case
    pairs_per_second: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    clock: float = 0.0
    predicted: float = 0.0


def main() -> int:
    options = parse()
    deadline = time.monotonic() + options.seconds
    if not torch.cuda.is_available():
        sys.exit("bench.gpu: torch finds no CUDA or ROCm device")
    failed = 0 if options.skip_tests else run_tests(options.seconds * 0.45)
    outcomes = []
    for name in options.cases.split(",") if options.cases else NEEDED:
        if time.monotonic() > deadline - 15:
            print(f"{name}: no time left")
            continue
        outcomes.append(measure(CASES[name]))
        print(line(outcomes[-1]), flush=True)
        save(outcomes[-1], options.out)
    print(overhead())
    return 1 if failed or any(OURS in outcome.failures for outcome in outcomes) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of gpu.jsonl")
    parser.add_argument("--seconds", type=float, default=570, help="time for all of it (default: 570)")
    parser.add_argument("--cases", help="names, separated by commas (default: all)")
    parser.add_argument("--skip-tests", action="store_true", help="measure only")
    return parser.parse_args()


def run_tests(seconds: float) -> int:
    """The tests marked `gpu`; they are stopped when their share of the time is over."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "tests/gpu"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parents[1], timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"tests: stopped after {seconds:.0f} s")
        return 1


# --- times ----------------------------------------------------------------------------------------------


def measure(case: Case) -> Outcome:
    case = replace(case, M=rows_of(case), N=rows_of(case))
    outcome = Outcome(case)
    inputs = [tensor.cuda() for tensor in case.inputs()]
    for peer, (make, rows) in peers(case).items():
        some = case.rows(inputs, slice(0, min(rows, case.M)))
        try:
            computation = make(case, some)
            result = computation()
            outcome.errors[peer] = case.error(result, some)
            outcome.pairs_per_second[peer] = min(rows, case.M) * case.N / seconds_of(computation, outcome, peer)
        except Exception as error:  # a peer that cannot do a case is a result, not the end of the run
            outcome.failures[peer] = f"{type(error).__name__}: {error}"[:200]
            continue
        if not outcome.errors[peer] <= TOLERANCE[case.dtype]:
            outcome.failures[peer] = f"WRONG by {outcome.errors[peer]:.1e}"
    outcome.predicted = predict(case, outcome.clock)
    return outcome


def rows_of(case: Case) -> int:
    """Rows of both clouds: a million, fewer in more than 16 dimensions and in float64. Peers may take fewer rows i."""
    return (1 << 24) // max(16, case.dims["x"]) * 4 // max(4, case.dtype.itemsize)


def peers(case: Case) -> dict[str, tuple[Callable[[Case, list[Tensor]], Callable[[], Tensor]], int]]:
    """Who runs a case, and on how many rows i: dense blocks take time, and KeOps in 64 dimensions too."""
    found: dict[str, Any] = {OURS: (PEERS[OURS], case.M)}
    if installed("pykeops"):
        found["pykeops"] = (PEERS["pykeops"], case.M // 8)
    rows = max(1, CHUNK_BYTES // (case.N * case.dtype.itemsize))
    found["torch"] = (lambda case, inputs: lambda: case.dense(*inputs), rows)
    found["torch.compile"] = (lambda case, inputs: compiled(case, inputs), rows)
    if "sdpa" in case.peers:
        found["sdpa"] = (PEERS["sdpa"], case.M)
    return found


def compiled(case: Case, inputs: list[Tensor]) -> Callable[[], Tensor]:
    function = torch.compile(case.dense)
    return lambda: function(*inputs)


def seconds_of(computation: Callable[[], Tensor], outcome: Outcome, peer: str) -> float:
    """The median time of a call, by the device's clock; ours is repeated while the SM clock is read."""
    times = [timed(computation) for _ in range(2)]
    while sum(times) < SHORTEST and len(times) < 1000:
        times.append(timed(computation))
    if peer == OURS:
        outcome.clock = clock_under(computation)
    return statistics.median(times[1:])


def timed(computation: Callable[[], Tensor]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    computation()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def clock_under(computation: Callable[[], Tensor]) -> float:
    """The SM clock in Hz while a computation runs, as nvidia-smi sees it; 0 where it does not tell."""
    for _ in range(8):
        computation()
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
        return float(text.split()[0]) * 1e6
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0.0
    finally:
        torch.cuda.synchronize()


def predict(case: Case, clock: float) -> float:
    """Pairs per second by the counts, for this device's multiprocessors at the clock seen; 0 for unknown devices."""
    major, minor = torch.cuda.get_device_capability()
    target = f"cuda:{major}{minor}"
    if target not in DEVICES or case.name not in NEEDED:
        return 0.0
    device = DEVICES[target]._replace(
        multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count,
        hertz=clock or DEVICES[target].hertz,
    )
    return bound(counted(kernel_of(case), target)[0].lanes, device)[0]


def overhead() -> str:
    """Microseconds of one call on ten rows, launches included."""
    case = CASES["overhead_m10"]
    inputs = [tensor.cuda() for tensor in case.inputs()]
    figures = []
    for peer in (OURS, "pykeops"):
        if not installed(peer):
            continue
        computation = PEERS[peer](case, inputs)
        computation()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(1000):
            computation()
        torch.cuda.synchronize()
        figures.append(f"{peer} {(time.perf_counter() - start) * 1e3:.1f} µs")
    return f"a call at M = N = 10: {', '.join(figures)}"


# --- report ---------------------------------------------------------------------------------------------


def line(outcome: Outcome) -> str:
    ours = outcome.pairs_per_second.get(OURS)
    cells = [f"{outcome.case.name:18} N={outcome.case.N}"]
    for peer, rate in outcome.pairs_per_second.items():
        beside = "" if peer == OURS or not ours else f" ({ours / rate:.1f}x)"
        cells.append(f"{peer} {rate / 1e12:.3g} T{beside}")
    if outcome.predicted and ours:
        cells.append(f"predicted {outcome.predicted / 1e12:.3g} T at {outcome.clock / 1e9:.2f} GHz")
    cells += [f"{peer}: {why}" for peer, why in outcome.failures.items()]
    return "; ".join(cells)


def save(outcome: Outcome, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "case": outcome.case.name,
        "M": outcome.case.M,
        "N": outcome.case.N,
        "dtype": str(outcome.case.dtype).removeprefix("torch."),
        "pairs_per_second": {peer: rounded(rate) for peer, rate in outcome.pairs_per_second.items()},
        "errors": {peer: rounded(error) for peer, error in outcome.errors.items()},
        "failures": outcome.failures,
        "predicted": rounded(outcome.predicted),
        "clock": outcome.clock,
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": version("triton"),
        **environment(torch.get_num_threads()),
    }
    with (folder / "gpu.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
