"""What a worker sets for the libraries it computes with."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PAGES = """
import resource, sys, torch
from sfuda_bench.running.runtime import configure
if sys.argv[1] == "configured":
    configure(1)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    torch.ones(16 << 20)  # 64 MB, until the heap is large enough
before = faults()
for _ in range(4):
    torch.ones(16 << 20)
print(faults() - before)
"""


def _faults(how: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", _PAGES, how], capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is set on glibc only")
def test_a_worker_keeps_the_memory_that_it_frees_for_the_next_tensor() -> None:
    """Four tensors of 64 MB touch 65,536 pages afresh by default, and the kept ones afterwards."""
    assert _faults("configured") < 1000 < _faults("plain")
