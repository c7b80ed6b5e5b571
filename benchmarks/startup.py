"""How long the command line takes to answer, in wall seconds of a new process: the promise is half a second.

.venv/bin/python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PROMISE = 0.5
RUNS = 10


def main() -> int:
    slow = 0
    for arguments in (["--help"], ["systems", "list"], ["systems", "list", "--json"], ["run", "--help"]):
        seconds = []
        for _ in range(RUNS):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "optative", *arguments], stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds)
        slow += median > PROMISE
        print(f"optative {' '.join(arguments):22} median {median:.3f} s, slowest {max(seconds):.3f} s of {RUNS}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
