#!/bin/sh
# Install the systems that Shoal is compared with, each in a virtual environment of its own:
#
#     sh benchmarks/rivals/install.sh [DIRECTORY]
#
# They want other versions of grpcio and protobuf than Shoal does. What does the learning is the same in
# all of them: torch, transformers and numpy in the versions that this environment has.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
target=${1:-"$here/runs/rivals"}
python=${PYTHON:-"$here/.venv/bin/python"}
common=$("$python" -m pip list --format=freeze --disable-pip-version-check |
    grep -E '^(torch|transformers|tokenizers|safetensors|numpy|psutil|zstandard)==' | sed 's/+.*//')

install() { # NAME REQUIREMENT...
    name=$1
    shift
    [ -x "$target/$name/bin/python" ] || "$python" -m venv "$target/$name"
    # shellcheck disable=SC2086 - a list of requirements.
    "$target/$name/bin/python" -m pip install --disable-pip-version-check --quiet $common "$@"
    "$target/$name/bin/python" -m pip list --disable-pip-version-check | grep -E "^($name|flwr|torch) "
}

mkdir -p "$target"
install flower flwr==1.41.0
install hivemind hivemind==1.1.12
