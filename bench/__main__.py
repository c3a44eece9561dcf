"""Ours against pykeops, torch, FAISS and scikit-learn, in one run.

    python -m bench [--plot | --cases "gaussian_d3,argmin_*"] [--quick] [--threads 2] [--save]

Every figure is followed by how many times faster ours is. Compare the ratios: figures move with the machine.
"""

import argparse
import fnmatch
import os
import sys
from collections.abc import Iterable


def main() -> int:
    options = parse()
    # The runtimes of OpenMP read these when they are loaded, so the libraries are imported only below.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    os.environ["PYKEOPS_VERBOSE"] = "0"

    import torch

    from bench.cases import CASES, PLOTTED, TABLE
    from bench.compare import compare
    from bench.report import failure_lines, header, save, table_line

    if options.plot and options.save:
        from bench.plot import draw  # that matplotlib is missing shows now, not in a quarter of an hour

    torch.set_num_threads(options.threads)
    group = PLOTTED if options.plot else TABLE
    names = matching(options.cases, CASES) if options.cases else group
    comparisons = []
    print(header())
    for name in names:
        if CASES[name].dtype == torch.bfloat16:
            print(f"{name:20}  skipped: bfloat16 is for GPUs")
            continue
        comparisons.append(compare(CASES[name], options.quick))
        print(table_line(comparisons[-1]), flush=True)
    failures = [line for comparison in comparisons for line in failure_lines(comparison)]
    print(*failures, sep="\n", end="\n" if failures else "")
    if options.save:
        save(comparisons, options.threads)
        if options.plot:
            draw()
    return 1 if failures else 0


def matching(patterns: str, cases: Iterable[str]) -> list[str]:
    """The cases that these names or patterns stand for, in their order."""
    found = {pattern: fnmatch.filter(cases, pattern) for pattern in patterns.split(",")}
    if unknown := [pattern for pattern, names in found.items() if not names]:
        sys.exit(f"unknown cases: {', '.join(unknown)}; there are {', '.join(cases)}")
    return [name for names in found.values() for name in names]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cases", help="names or patterns, separated by commas (default: those of the README's table)")
    which.add_argument("--plot", action="store_true", help="the cases of the plot; with --save, it is drawn anew")
    parser.add_argument("--quick", action="store_true", help="half the sizes, two rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--save", action="store_true", help="append to bench/results/cpu.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
