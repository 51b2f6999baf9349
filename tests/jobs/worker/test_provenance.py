"""What a run is said to have taken."""

import subprocess
import sys

from hvae_hpc.jobs.worker.provenance import peak_memory_mib


def test_memory_is_that_of_all_processes_that_a_run_has() -> None:
    of_grandchild = "x = b'1' * (200 << 20); print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {of_grandchild!r}])"
    before = peak_memory_mib()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin
    assert child.stdout
    with child:
        child.stdout.readline()
        during = peak_memory_mib()
        child.stdin.close()
    assert 200 < during - before < 260
    assert peak_memory_mib() - before < 20
