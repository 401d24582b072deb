#!/usr/bin/env bash
# Builds, tests and measures the CUDA kernels, in under eight minutes.
#
#   benchmarks/gpu_check.sh OUT
#
# Needs an NVIDIA GPU, nvcc, a C++ compiler, and a python3 (or $PYTHON) with torch >= 2.10 and pytest; nothing is
# downloaded. Writes into the folder OUT:
#
#   environment.txt                  the machine, its driver and its software
#   build.log                        compilers' output
#   tests.log, tests.xml             pytest -m gpu
#   target.json, target.txt          8192x4096x4096, rank 16: the shape that the figures to reach are about
#   llama3-8b.json, llama3-8b.txt    every layer of a block
#   summary.txt                      a line a step
#
# Exits with 0 when every step succeeded, 1 when one failed, 2 when something is missing.

set -uo pipefail

if [ $# -ne 1 ]; then
    echo "usage: benchmarks/gpu_check.sh OUT" >&2
    exit 2
fi
python=$(command -v "${PYTHON:-python3}") || {
    echo "missing: ${PYTHON:-python3} is not found; name one: PYTHON=… benchmarks/gpu_check.sh OUT" >&2
    exit 2
}
case $python in
*/*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;;
esac
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

budget=465 # seconds for everything
SECONDS=0
failed=()
: >"$out/summary.txt"
export PYTHONPATH="$PWD:$PWD/plugins${PYTHONPATH:+:$PYTHONPATH}"
# A silent fall back to the reference would pass every test.
export FTENGINE_REQUIRE_EXTENSION=1

say() { echo "$*" | tee -a "$out/summary.txt"; }

# step NAME SECONDS FILE COMMAND… runs a command for so long at most, its output in FILE.
step() {
    local name=$1 limit=$2 file=$3 begun=$SECONDS status=0
    shift 3
    if [ "$limit" -gt $((budget - SECONDS)) ]; then limit=$((budget - SECONDS)); fi
    if [ "$limit" -lt 5 ]; then
        say "failed: $name: no time is left"
        failed+=("$name")
        return 1
    fi
    timeout --kill-after=10 "$limit" "$@" >"$out/$file" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        say "ok: $name, $((SECONDS - begun)) s"
        return 0
    elif [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
        say "failed: $name: not done after $limit s; see $file"
    else
        say "failed: $name: exit status $status; see $file"
    fi
    tail -n 20 "$out/$file" >&2
    failed+=("$name")
    return 1
}

# What must be there. Every line printed is something that is not.
missing=$("$python" - 2>&1 <<'PYTHON'
import importlib.util
import shutil
import sys

if importlib.util.find_spec("pytest") is None:
    print(f"pytest is not installed for {sys.executable}")
if importlib.util.find_spec("torch") is None:
    print(f"torch is not installed for {sys.executable}; 2.10 or newer is needed")
    sys.exit()
import torch

if torch.torch_version.TorchVersion(torch.__version__) < (2, 10):
    print(f"torch is {torch.__version__}; 2.10 or newer is needed")
if not torch.cuda.is_available():
    print(f"torch {torch.__version__} finds no NVIDIA GPU; a GPU, its driver and a torch built for CUDA are needed")
PYTHON
) || missing=${missing:-"$python does not run"}
nvcc=${CUDACXX:-$(command -v nvcc || true)}
if [ -z "$nvcc" ] && [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
    export PATH="$PATH:${nvcc%/*}"
fi
if [ -z "$nvcc" ]; then missing+="${missing:+$'\n'}nvcc is not on PATH, nor in CUDA_HOME or /usr/local/cuda"; fi
if [ -n "$missing" ]; then
    while IFS= read -r line; do say "missing: $line"; done <<<"$missing"
    exit 2
fi

describe() {
    nvidia-smi || true
    "$nvcc" --version
    "$python" - <<'PYTHON'
import platform

import torch

print(platform.platform(), "python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
print(torch.cuda.get_device_properties(0))
PYTHON
}
describe >"$out/environment.txt" 2>&1

# This GPU's architecture alone, and no setuptools, which may be too old for pyproject.toml.
architecture=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
export FTENGINE_CPU=1 FTENGINE_CUDA=1 FTENGINE_CUDA_ARCHS=${FTENGINE_CUDA_ARCHS:-$architecture}
build="from builder.parts import ROOT, plan; plan().build(ROOT)"

if step build 240 build.log env PYTHONPATH="$PWD/csrc:$PYTHONPATH" "$python" -c "$build"; then
    # pyproject.toml's addopts name plugins of pytest that may be absent here.
    step tests 200 tests.log "$python" -m pytest -o addopts= -ra --strict-markers -p no:cacheprovider -m gpu \
        --junitxml "$out/tests.xml" tests/ops/cuda
    step target 120 target.txt "$python" -m ftengine_bench kernels --device cuda --shape 8192x4096x4096 --ranks 16 \
        --dtypes bfloat16 --seconds 0.5 --json "$out/target.json"
    # torch.compile takes longer to compile a block's layers than all else takes.
    step llama3-8b 180 llama3-8b.txt "$python" -m ftengine_bench kernels --device cuda --preset llama3-8b \
        --tokens 8192 --ranks 8,16,64 --dtypes bfloat16 --providers eager,reference,compiled --seconds 0.1 \
        --json "$out/llama3-8b.json"
fi

if [ ${#failed[@]} -gt 0 ]; then
    say "failed after $SECONDS s: ${failed[*]}"
    exit 1
fi
say "everything succeeded after $SECONDS s"
