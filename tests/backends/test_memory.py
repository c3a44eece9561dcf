"""A call needs a few MB beyond its inputs and output, whatever M and N."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from tritonkeops.torch import Genred
x, y = torch.rand({M}, 3), torch.rand({N}, 3)
reduce = Genred("Exp(-SqDist(x,y))", ["x=Vi(3)", "y=Vj(3)"], {options}, axis=1)
reduce(x[:64], y[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reduce(x, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux")
@pytest.mark.parametrize(
    ("M", "N", "options"),
    [(20_000, 20_000, "'Sum'"), (1, 5_000_000, "'LogSumExp'"), (20_000, 20_000, "'ArgKMin', opt_arg=10")],
)
def test_peak_memory_is_a_few_megabytes(M, N, options):
    script = SCRIPT.format(M=M, N=N, options=options)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    output = M * 10 * 8 // 1024
    assert int(done.stdout) - output < 16 * 1024  # a dense matrix would take 1.6 GB
