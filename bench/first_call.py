"""The time from a formula never seen to its first result, with an empty cache, in a process of its own.

python -m bench.first_call pykeops 12345     # prints seconds; the number makes the formula unique
"""

import importlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

from bench.cases import CASES, Case
from bench.peers import PEERS


def seconds_in_new_process(peer: str, case: Case, unique: int) -> float:
    """Start a process with empty caches and ask it for the time of its first call."""
    command = [sys.executable, "-m", "bench.first_call", peer, case.name, str(unique)]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TRITONKEOPS_CACHE_DIR": cache, "BENCH_CACHE": cache}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1])
    return float(run.stdout.splitlines()[-1])


def seconds_here(peer: str, case: Case, unique: int) -> float:
    """Imports do not count; constructing the kernel and calling it do."""
    library = importlib.import_module(f"{peer}.torch") and importlib.import_module(peer)
    if hasattr(library, "set_build_folder"):  # pykeops has no environment variable for its cache
        library.set_build_folder(os.environ["BENCH_CACHE"])
    unseen = replace(case, formula=f"{case.formula}*IntInv({unique})")
    inputs = unseen.inputs()
    start = time.perf_counter()
    PEERS[peer](unseen, inputs)()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(seconds_here(sys.argv[1], CASES[sys.argv[2]], int(sys.argv[3])))
