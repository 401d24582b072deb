"""Runs nvcc and fails when a kernel spills registers: `python spills.py nvcc …`.

A spill is a load and a store per use in kernels that are bound by memory: a defect, whatever the result.
"""

import re
import subprocess
import sys

CHATTER = r"ptxas info\s+: (Compil|Function properties|Used|\d+ bytes)|\s+\d+ bytes stack"
"""What ptxas tells of every kernel, spilling or not."""


def spills(log: str) -> list[str]:
    """Return what `-Xptxas -v` says of kernels that spill, a line each."""
    found, kernel = [], "a kernel"
    for line in log.splitlines():
        if compiled := re.search(r"Compiling entry function '(.+?)' for '(.+?)'", line):
            kernel = f"{compiled[1]} for {compiled[2]}"
        elif re.search(r"\b[1-9]\d* bytes spill", line):
            found.append(f"{kernel}: {line.strip()}")
    return found


def main(command: list[str]) -> int:
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    told = [line for line in (done.stdout + done.stderr).splitlines() if not re.match(CHATTER, line)]
    if told:
        print("\n".join(told), file=sys.stderr)
    if done.returncode:
        return done.returncode
    found = spills(done.stdout + done.stderr)
    for line in found:
        print(f"error: registers spill in {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
