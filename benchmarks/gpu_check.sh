#!/usr/bin/env bash
# Builds, tests and measures the CUDA kernels, in under eight minutes.
#
#   benchmarks/gpu_check.sh OUT
#   benchmarks/gpu_check.sh --dry-run OUT     without a GPU: the emulated kernels' tests, tiny measurements on the CPU
#
# Needs an NVIDIA GPU of compute capability 8.0 or newer with its driver, nvcc, a C++ compiler, CMake, ninja, and a
# python3 (or $PYTHON) with torch >= 2.10 and pytest; nothing is downloaded. PEFT, LoRAFusion and Unsloth are measured where they
# are installed. Writes into the folder OUT, benchmarks/results/DEVICE for a row of docs/benchmarks.md:
#
#   environment.txt             the machine, its driver and its software
#   build.log                   compilers' output
#   tests.log, tests.xml        pytest -m gpu
#   kernels-target.json, .txt   8192x4096x4096, rank 16: the shape that the figures to reach are about
#   kernels-small.json, .txt    512 tokens through a block of Llama-3-8B
#   kernels-large.json, .txt    8192 tokens through it
#   kernels-graphs.json, .txt   the small ones replayed from CUDA graphs
#   kernels-compile.json, .txt  the target against torch.compile; may fail without failing the whole
#   summary.txt                 a line a step
#
# Exits with 0 when every step succeeded, 1 when one failed, 2 when something is missing.

set -uo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=1
    shift
fi
if [ $# -ne 1 ]; then
    echo "usage: benchmarks/gpu_check.sh [--dry-run] OUT" >&2
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

# What must be there. Every line on stdout is something that is not; what libraries warn of goes to stderr.
missing=$(DRY=$dry "$python" - 2>"$out/environment.txt" <<'PYTHON'
import ctypes
import importlib.util
import os
import sys

if importlib.util.find_spec("pytest") is None:
    print(f"pytest is not installed for {sys.executable}")
if importlib.util.find_spec("torch") is None:
    print(f"torch is not installed for {sys.executable}; 2.10 or newer is needed")
    sys.exit()
import torch

if torch.torch_version.TorchVersion(torch.__version__) < (2, 10):
    print(f"torch is {torch.__version__}; 2.10 or newer is needed")
if os.environ["DRY"]:
    sys.exit()
try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    print("there is no NVIDIA driver here (libcuda.so.1); install the one of your GPU")
if torch.version.cuda is None:
    print(f"torch {torch.__version__} is built without CUDA; install one that is built with it")
elif not torch.cuda.is_available():
    print(f"torch {torch.__version__}, for CUDA {torch.version.cuda}, finds no NVIDIA GPU that its driver serves")
elif torch.cuda.get_device_capability() < (8, 0):
    print(f"{torch.cuda.get_device_name()} has compute capability {torch.cuda.get_device_capability()}; 8.0 is needed")
PYTHON
) || missing=${missing:-"$python does not run: $(tail -n 1 "$out/environment.txt")"}
lacks() { missing+="${missing:+$'\n'}$1"; }
compiler=${CXX:-$(command -v c++ || command -v g++ || command -v clang++)} ||
    lacks "a C++ compiler is neither named by CXX nor on PATH (c++, g++ or clang++)"
for tool in cmake ninja; do
    PYTHONPATH="$PWD/csrc" "$python" -c "from toolchain import find_program; find_program('$tool')" 2>/dev/null ||
        lacks "$tool is neither on PATH nor beside $python; pip install $tool"
done
if [ -z "$dry" ]; then
    nvcc=${CUDACXX:-$(command -v nvcc || true)}
    if [ -z "$nvcc" ] && [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
        export PATH="$PATH:${nvcc%/*}"
    fi
    if [ -z "$nvcc" ]; then lacks "nvcc is not on PATH, nor in CUDA_HOME or /usr/local/cuda"; fi
fi
if [ -n "$missing" ]; then
    while IFS= read -r line; do say "missing: $line"; done <<<"$missing"
    exit 2
fi

describe() {
    nvidia-smi || true
    "${nvcc:-true}" --version
    $compiler --version
    "$python" - <<'PYTHON'
import platform

import torch

print(platform.platform(), "python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
if torch.cuda.is_available():
    print(torch.cuda.get_device_properties(0))
PYTHON
}
describe >>"$out/environment.txt" 2>&1

build="from builder import ROOT, plan; plan().build(ROOT)" # no setuptools, which may be too old for pyproject.toml
if [ -n "$dry" ]; then
    export FTENGINE_CPU=1 FTENGINE_CUDA=0
    tests=(tests/ops/cuda/test_layers.py)
    target=(--device cpu --shape 64x128x256 --seconds 0.01)
    small=("${target[@]}") large=("${target[@]}")
else
    # This GPU's architecture alone.
    architecture=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null)
    export FTENGINE_CPU=1 FTENGINE_CUDA=1 FTENGINE_CUDA_ARCHS=${FTENGINE_CUDA_ARCHS:-$architecture}
    tests=(-m gpu tests/ops/cuda)
    target=(--device cuda --shape 8192x4096x4096 --seconds 0.5)
    small=(--device cuda --preset llama3-8b --tokens 512 --seconds 0.1)
    large=(--device cuda --preset llama3-8b --tokens 8192 --seconds 0.1)
fi
peers=frozen,eager,reference,compiled
for peer in peft lorafusion unsloth; do
    if [ -z "$dry" ] && "$python" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$peer'))"; then
        peers+=,$peer
    fi
done

# measure NAME SECONDS OPTIONS… measures kernels; rows are in the file as soon as they are there.
measure() {
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "kernels-$name.txt" "$python" -m ftengine_bench kernels --dtypes bfloat16 \
        --json "$out/kernels-$name.json" "$@"
}

if step build 240 build.log env PYTHONPATH="$PWD/csrc:$PYTHONPATH" "$python" -c "$build"; then
    # pyproject.toml's addopts name plugins of pytest that may be absent here, as may what tests/conftest.py imports.
    step tests 200 tests.log "$python" -m pytest -o addopts= -ra --strict-markers -p no:cacheprovider \
        --confcutdir tests/ops --junitxml "$out/tests.xml" "${tests[@]}"
    measure target 100 "${target[@]}" --ranks 16 --providers "$peers"
    measure small 60 "${small[@]}" --ranks 16 --providers "$peers"
    measure large 120 "${large[@]}" --ranks 8,16,64 --providers "$peers"
    if [ -z "$dry" ]; then measure graphs 60 "${small[@]}" --ranks 16 --providers eager,compiled --launch graph; fi
    # torch.compile may lack its own compiler, or take all the time that there is: last, and nothing depends on it.
    if ! measure compile 120 "${target[@]}" --ranks 16 --providers eager,torch-compile; then
        unset 'failed[-1]'
    fi
fi

if [ ${#failed[@]} -gt 0 ]; then
    say "failed after $SECONDS s: ${failed[*]}"
    exit 1
fi
say "everything succeeded after $SECONDS s"
