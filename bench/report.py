"""A comparison as a line of a table, and as a line of JSON with all that it depends on."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.compare import Comparison
from bench.peers import OURS, PEERS, versions

LABELS = {
    "tritonkeops": "tritonkeops",
    "pykeops": "PyKeOps",
    "torch": "torch",
    "sdpa": "torch's scaled_dot_product_attention",
    "faiss": "FAISS",
    "sklearn": "scikit-learn",
}
UNITS = {"throughput": "G pairs/s", "call": "µs", "first call": "s"}
RESULTS = Path(__file__).parent / "results" / "cpu.jsonl"
PICTURE = RESULTS.with_name("dims.svg")
COLUMN = 19


def header() -> str:
    cells = "".join(f"{peer:>{COLUMN}}" for peer in PEERS)
    return f"{'case':20}{'M':>7}{'N':>8}  {'unit':10}{cells}"


def table_line(comparison: Comparison) -> str:
    """Each peer's figure, and in brackets how many times faster ours is."""
    case = comparison.case
    cells = "".join(f"{cell(comparison, peer):>{COLUMN}}" for peer in PEERS)
    return f"{case.name:20}{case.M:7}{case.N:8}  {UNITS[case.measure]:10}{cells}"


def cell(comparison: Comparison, peer: str) -> str:
    if peer in comparison.failures:
        return comparison.failures[peer].split(":")[0][: COLUMN - 2]
    if peer not in comparison.seconds:
        return "-"
    ratio = comparison.ratio(peer)
    beside = "" if peer == OURS or ratio is None else f" ({ratio:.1f}x)"
    return f"{figure(comparison, peer):.3g}{beside}"


def figure(comparison: Comparison, peer: str) -> float:
    """A peer's result in the unit of the case."""
    seconds = comparison.seconds[peer]
    of_measure = {
        "throughput": comparison.pairs / seconds / 1e9,
        "call": seconds * 1e6,
        "first call": seconds,
    }
    return of_measure[comparison.case.measure]


def failure_lines(comparison: Comparison) -> list[str]:
    """What the table has no room for."""
    told = ((peer, why) for peer, why in comparison.failures.items() if why != "not installed")
    return [f"  {comparison.case.name}, {peer}: {why}" for peer, why in told]


def save(comparisons: list[Comparison], threads: int) -> None:
    """Append one line of JSON for each case."""
    RESULTS.parent.mkdir(exist_ok=True)
    made_by = environment(threads)
    with RESULTS.open("a") as file:
        for comparison in comparisons:
            file.write(json.dumps({**record(comparison), **made_by}) + "\n")


def newest(names: Collection[str]) -> dict[str, dict[str, Any]]:
    """The newest records of these cases, by name, of all that were measured as the last of them was."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    records = [each for each in map(json.loads, lines) if each["case"] in names]
    alike = [r for r in records if all(r[k] == records[-1][k] for k in ("cpu", "threads", "compiler", "versions"))]
    return {record["case"]: record for record in alike}


def circumstances(records: Mapping[str, Mapping[str, Any]]) -> str:
    """How the newest of some records was made, in a sentence."""
    last = max(records.values(), key=lambda record: str(record["date"]))
    versions = ", ".join(f"{LABELS.get(name, name)} {version}" for name, version in last["versions"].items())
    return (
        f"{last['cpu']}, {last['threads']} threads, {last['compiler']}, Python {last['python']}; {versions}; "
        f"{last['date'][:10]}."
    )


def record(comparison: Comparison) -> dict[str, Any]:
    case, peers = comparison.case, list(comparison.seconds)
    ratios = {peer: comparison.ratio(peer) for peer in peers if peer != OURS}
    return {
        "case": case.name,
        "M": case.M,
        "N": case.N,
        "dtype": str(case.dtype).removeprefix("torch."),
        "unit": UNITS[case.measure],
        "figures": {peer: rounded(figure(comparison, peer)) for peer in peers},
        "ratios": {peer: rounded(ratio) for peer, ratio in ratios.items() if ratio is not None},
        "errors": {peer: rounded(error) for peer, error in comparison.errors.items()},
        "failures": comparison.failures,
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def environment(threads: int) -> dict[str, Any]:
    """The machine, the versions and the commit."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": threads,
        "compiler": first_line(os.environ.get("CC", "cc"), "--version"),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def first_line(program: str, *arguments: str) -> str | None:
    """The first line that a program prints, or None where it is missing or fails."""
    if shutil.which(program) is None:
        return None
    run = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return run.stdout.splitlines()[0] if run.returncode == 0 and run.stdout else None
