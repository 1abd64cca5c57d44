#!/bin/sh
# Regenerates the protobuf stubs in a temporary folder and compares them with the committed ones.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PATH="$(dirname "$python"):$PATH"
export PATH
(cd proto && ls ./*.proto) | sed 's|^\./|shoal/proto/|' | xargs "$python" -m grpc_tools.protoc \
    -I shoal/proto=proto --python_out="$work" --grpc_python_out="$work" \
    --mypy_out="$work" --mypy_grpc_out="$work"
status=0
for stub in "$work"/shoal/proto/*; do
    if ! cmp -s "$stub" "proto/$(basename "$stub")"; then
        echo "stale stub: proto/$(basename "$stub"); run 'make proto' and commit the result" >&2
        status=1
    fi
done
exit $status
