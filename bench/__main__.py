"""Ours against pykeops, torch, FAISS and scikit-learn, in one run.

    python -m bench [--cases gaussian_d3,argmin_d3] [--quick] [--threads 2] [--save]

Every figure is followed by how many times faster ours is. Compare the ratios: figures move with the machine.
"""

import argparse
import os
import sys


def main() -> int:
    options = parse()
    # The runtimes of OpenMP read these when they are loaded, so the libraries are imported only below.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    os.environ["PYKEOPS_VERBOSE"] = "0"

    import torch

    from bench.cases import CASES
    from bench.compare import compare
    from bench.report import failure_lines, header, save, table_line

    torch.set_num_threads(options.threads)
    names = options.cases.split(",") if options.cases else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        sys.exit(f"unknown cases: {', '.join(unknown)}; there are {', '.join(CASES)}")

    print(header())
    comparisons = []
    for name in names:
        comparisons.append(compare(CASES[name], options.quick))
        print(table_line(comparisons[-1]), flush=True)
    failures = [line for comparison in comparisons for line in failure_lines(comparison)]
    print(*failures, sep="\n", end="\n" if failures else "")
    if options.save:
        save(comparisons, options.threads)
    return 1 if failures else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", help="names, separated by commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="half the sizes, two rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--save", action="store_true", help="append to bench/results/cpu.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
