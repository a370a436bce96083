#!/usr/bin/env bash
# Runs pytest; what needs the kernel runs as root, by sudo where this is not root.
#   scripts/test.sh [PYTEST ARGUMENT...]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$(scripts/go.sh):$PATH:/usr/sbin:/sbin
export PATH GOTOOLCHAIN=local
python=$PWD/.venv/bin/python

if [ "$(id -u)" = 0 ]; then
    exec "$python" -m pytest "$@"
fi
"$python" -m pytest -m "not kernel and not real" "$@"
command -v sudo >/dev/null || {
    echo "test: the kernel part needs root, and there is no sudo here: run make test as root" >&2
    exit 1
}
exec sudo --preserve-env=NETPROFILER_REQUIRE_KERNEL,CI,GOTOOLCHAIN env "PATH=$PATH" "$python" -m pytest \
    -p no:cacheprovider -m "kernel or real" "$@"
