#!/bin/sh
# Makes the virtual environment $1 with Shoal (editable) and its development tools.
#
# The trap this script avoids: on Linux a plain `pip install torch` brings gigabytes of CUDA,
# also where there is no GPU. So torch is installed first and alone: where the pinned version is
# to be had as a CPU build it is taken, and where an NVIDIA GPU is present the ordinary build is.
set -eu
venv=${1:-.venv}
python=${PYTHON:-python3}
torch_cpu_index=${SHOAL_TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "shoal needs Python 3.11 or newer; $("$python" --version 2>&1) was found. Try: make install PYTHON=python3.12" >&2
    exit 1
}
if [ ! -x "$venv/bin/pip" ]; then
    "$python" -m venv "$venv" || {
        echo "making a virtual environment failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    }
fi
pip="$venv/bin/python -m pip --disable-pip-version-check install --quiet"

has_torch() { "$venv/bin/python" -c 'import torch' 2>/dev/null; }
has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }
# True when the index in use would give a build of the pinned torch that needs no CUDA packages.
pin_is_cpu() {
    $pip --dry-run --report - --no-deps --constraint constraints.txt torch 2>/dev/null |
        "$venv/bin/python" -c '
import json, sys
package = json.load(sys.stdin)["install"][0]["metadata"]
needs = package.get("requires_dist", [])
sys.exit(any("nvidia" in need or "cuda" in need for need in needs))'
}

if ! has_torch; then
    if has_gpu || pin_is_cpu; then
        $pip --constraint constraints.txt torch
    else
        $pip --index-url "$torch_cpu_index" --constraint constraints.txt torch || {
            echo "no CPU build of torch could be installed from $torch_cpu_index;" \
                "set SHOAL_TORCH_CPU_INDEX to an index that has one" >&2
            exit 1
        }
    fi
fi
$pip --constraint constraints.txt --editable '.[dev,plots,lora,docs]'
