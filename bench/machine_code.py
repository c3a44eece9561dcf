"""What the GPU kernels of the named cases execute per pair, counted in machine code. No GPU is needed.

    python -m bench.machine_code [--cases gaussian_d3,argkmin10_d3] [--targets cuda:80,cuda:90] [--save]

Each kernel is compiled offline for a target, and the instructions of its loop over tiles are counted by the unit that
executes them. The unit that is busy longest bounds the pairs per second. Beside it stand the same figure for the work
that the case cannot do without, and the count of KeOps' own CUDA code (`bench.keops_cuda`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.cases import CASES, Case
from bench.keops_cuda import saved
from bench.report import first_line, rounded
from tritonkeops.backends.triton.build import TritonKernel
from tritonkeops.backends.triton.predict import DEVICES, Device, bound, counted
from tritonkeops.backends.triton.sass import PerPair, Usage, version_of
from tritonkeops.compiler import Program, Target

RESULTS = Path(__file__).parent / "results" / "machine_code.jsonl"


# What a pair cannot do without. Exponents may come from tensor cores, so the exponential alone bounds sums of
# Gaussians of few components; of long vectors it is three products in 16 bits, and 16 more columns for the norms. Sums
# of vectors with the weights of pairs are three products of tf32, each as dear as two in 16 bits.
NEEDED: dict[str, dict[str, float]] = {
    "gaussian_d3": {"mufu": 1},
    "logsumexp_d3": {"mufu": 1},
    "argkmin10_d3": {"fp32": 6, "alu": 1},  # differences 3, squares 3; comparison
    "argmin_d3": {"fp32": 6, "alu": 1},
    "gaussian_grad_d3": {"fp32": 8, "mufu": 1},  # exponent as an inner product 3, weight 1, sums of b and b*y 4
    "gaussian_d10": {"mufu": 1},
    "gaussian_d64": {"tensor": 3 * 64 + 16},
    "gaussian_d128": {"tensor": 3 * 128 + 16},
    "gaussian_d1024": {"tensor": 3 * 1024 + 16},
    "gaussian_grad_d64": {"tensor": 3 * 64 + 16 + 2 * 3 * 64},
    "gaussian_rhs64_d3": {"tensor": 16 + 2 * 3 * 64},
    "logsumexp_d64": {"tensor": 3 * 64 + 16},
    "softmax_d3": {"mufu": 1},
    "gaussian_f64_d3": {"fp64": 20},  # distance and sum 7, exponential 13: a polynomial of degree 11 and its argument
    "softmax_d64": {"tensor": 3 * 64 + 2 * 3 * 64},
    "softmax_d64_bf16": {"tensor": 64 + 64},
    "argkmin10_d64": {"tensor": 3 * 64 + 16},
    "argkmin10_d128": {"tensor": 3 * 128 + 16},
    "argmin_d128_bf16": {"tensor": 128 + 16},
}


def limit(case: str, device: Device) -> float:
    """The most pairs per second that a GPU could do."""
    needed = NEEDED[case]
    issue = needed.get("fp32", 0) / device.packed + needed.get("alu", 0) + needed.get("mufu", 0)
    return bound({**needed, "issue": issue}, device)[0]


# --- our kernels ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A case on a target."""

    case: str
    target: str
    counted: PerPair
    usage: Usage

    @property
    def pairs_per_second(self) -> float:
        return bound(self.counted.lanes, DEVICES[self.target])[0]

    @property
    def bound_by(self) -> str:
        return bound(self.counted.lanes, DEVICES[self.target])[1]

    @property
    def limit(self) -> float:
        return limit(self.case, DEVICES[self.target])


def measure(name: str, target: str) -> Row:
    """Compile a case's kernel (the gradient's, where it has one) and count it."""
    return Row(name, target, *counted(kernel_of(CASES[name]), target))


def kernel_of(case: Case, **changes: Any) -> TritonKernel:
    """A case's kernel for many rows, on the chooser's schedule with these changes."""
    given = case.gradient_arguments() if case.gradient_in else case.genred_arguments()
    k, formula2 = given.get("opt_arg", 0), given.get("formula2")
    program = Program(given["formula"], given["aliases"], given["reduction_op"], given["axis"], k, formula2)
    dtype = str(case.dtype).removeprefix("torch.")
    target = Target(dtype, Target(dtype).arithmetic, backend="triton")
    return program.triton_kernel(target, replace(program.tile(target).schedule, **changes))


# --- report ---------------------------------------------------------------------------------------------

COLUMNS = (
    "case | GPU | KeOps | T pairs/s | ours | fp32 | alu | mufu | memory | tensor | registers | spilled | T pairs/s "
    "| bound by | of the limit"
)


def table(rows: Sequence[Row]) -> str:
    """Markdown: instructions per pair of KeOps and of ours, ours by pipe, and the pairs per second that they allow.

    "7.9 (+60)": 7.9 on the path, 60 more where all branches are taken.
    """
    columns = COLUMNS.split(" | ")
    alignment = ["---" if name in ("case", "GPU", "bound by") else "---:" for name in columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, alignment, *map(_cells, rows)))


def _cells(row: Row) -> list[str]:
    device, keops = DEVICES[row.target], saved(row.case, row.target)
    pipes = [_short(row.counted.lanes.get(pipe, 0)) for pipe in ("fp32", "alu", "mufu", "memory", "tensor")]
    beside = [_instructions(keops), _short(bound(keops.lanes, device)[0] / 1e12)] if keops else ["", ""]
    return [
        *(row.case, device.name, *beside, _instructions(row.counted), *pipes),
        *(str(row.usage.registers), str(row.usage.spilled) if row.usage.spilled else ""),
        *(_short(row.pairs_per_second / 1e12), row.bound_by, f"{row.pairs_per_second / row.limit:.0%}"),
    ]


def _instructions(counted: PerPair) -> str:
    return _short(counted.lanes["issue"]) + (f" (+{_short(counted.skipped)})" if counted.skipped >= 0.5 else "")


def _short(value: float) -> str:
    return f"{value:.3g}" if value >= 0.005 else ""


def save(rows: Sequence[Row]) -> None:
    """Append one line of JSON for each row."""
    assemblers = {name: version_of(name) for name in ("ptxas", "ptxas-blackwell")}  # the second for cuda:100
    circumstances = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"triton": version("triton"), **assemblers},
        "commit": first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
    }
    with RESULTS.open("a") as file:
        for row in rows:
            file.write(json.dumps({**record(row), **circumstances}) + "\n")


def record(row: Row) -> dict[str, Any]:
    return {
        "case": row.case,
        "target": row.target,
        "device": DEVICES[row.target].name,
        **asdict(row.counted),
        **row.usage._asdict(),
        "pairs_per_second": rounded(row.pairs_per_second),
        "bound_by": row.bound_by,
        "limit": rounded(row.limit),
    }


def latest() -> list[Row]:
    """The rows saved last, one for each case and target: `table` makes them into what the README shows."""
    found: dict[tuple[str, str], Row] = {}
    for line in RESULTS.read_text().splitlines():
        r = json.loads(line)
        counted = PerPair(r["kinds"], r["lanes"], r["skipped"])
        found[r["case"], r["target"]] = Row(
            r["case"], r["target"], counted, Usage(r["registers"], r["spilled"], r["shared"])
        )
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.machine_code", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(NEEDED), help="names, separated by commas (default: all)")
    parser.add_argument("--targets", default="cuda:90", help="default: cuda:90")
    parser.add_argument("--save", action="store_true", help=f"append to bench/results/{RESULTS.name}")
    options = parser.parse_args()
    names, targets = options.cases.split(","), options.targets.split(",")
    if unknown := (set(names) - set(NEEDED)) | (set(targets) - set(DEVICES)):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join([*NEEDED, *DEVICES])}")
    rows = [measure(name, target) for target in targets for name in names]
    print(table(rows))
    if options.save:
        save(rows)


if __name__ == "__main__":
    main()
