"""Runs notebooks in full, keeps their outputs, and says what each took: `make notebooks`."""

import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

TIMEOUT = 600


class ThisPython(AsyncKernelManager):
    """The interpreter that runs this, whatever kernels the machine has."""

    def format_kernel_cmd(self, extra_arguments=None):
        launcher = [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file]
        return [*launcher, "--IPKernelApp.log_level=40"]  # of its ports


def run(path, smoke=False):
    """The notebook as a fresh kernel leaves it; ``smoke`` shortens training."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=ThisPython,
        timeout=TIMEOUT,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    )
    left_out = {"MPLBACKEND", "PYRO_ELBO_SMOKE"}
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    env["OMP_NUM_THREADS"] = "1"
    return client.execute(env=env | {"PYRO_ELBO_SMOKE": "1"} if smoke else env)


def keep(path):
    """Run a notebook, write it, and return its seconds and its kernel's peak in MiB."""
    start = time.perf_counter()
    notebook = run(path)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    return time.perf_counter() - start, peak


def main(paths):
    for path in map(Path, paths):
        with ProcessPoolExecutor(max_workers=1) as one:  # so that each peak is of one kernel
            seconds, peak = one.submit(keep, path).result()
        print(f"{path.stem:35s} {seconds:4.0f} s  {peak:5.0f} MiB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
