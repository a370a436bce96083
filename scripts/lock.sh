#!/usr/bin/env bash
# Writes the lock files from pyproject.toml, for every CPython from 3.11 on; run by hand, when a dependency is to move.
# The resolver is fetched into a directory that goes away again. Locks name versions and hashes, never an index.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet uv

compile() {  # compile OUTPUT SOURCE [OPTION...]
    local output=$1 source=$2
    shift 2
    "$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --no-header \
        --no-emit-index-url --no-emit-find-links --output-file "$output" "$@" "$source"
    printf '%s\n' "# Written by scripts/lock.sh; install with pip install --require-hashes -r $output" | cat - "$output" >"$tools/out"
    cat "$tools/out" >"$output"
}

compile requirements.lock pyproject.toml
compile requirements-dev.lock pyproject.toml --extra dev --constraint requirements.lock
compile requirements-go.lock scripts/requirements-go.in
