#!/usr/bin/env bash
# Makes .venv with the locked dependencies and this checkout in it and, as root, a launcher in PREFIX/bin.
# A stamp names all that went in; while it fits nothing is done.
#   scripts/install.sh [PREFIX]
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${1:-/usr/local}
venv=$PWD/.venv
stamp=$venv/.installed

say() { printf '%s\n' "install: $*" >&2; }

usable() {  # usable COMMAND: a CPython >= 3.11 that can make a virtual environment
    command -v "$1" >/dev/null && "$1" -c '
import ensurepip, sys, venv
sys.exit(sys.implementation.name != "cpython" or sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do
        if usable "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

inputs() {  # what the virtual environment was made from: a change of any of it, or of the place, makes a new one
    printf '%s\n' "$venv"
    sha256sum requirements-dev.lock scripts/install.sh
}

own_inputs() {  # what the package's own metadata in it was made from
    sha256sum pyproject.toml
}

fits() {  # fits STAMP CONTENT
    [ "$(cat "$1" 2>/dev/null)" = "$2" ]
}

make_venv() {
    local python
    if ! python=$(find_python); then
        # Debian packs ensurepip by itself; a minimal machine may have no Python at all.
        scripts/debian.sh scripts/debian-packages-python.txt
        python=$(find_python) || {
            say "no CPython >= 3.11 found (looked for python3, python3.13 ... python3.11); set PYTHON=/path/to/python3"
            exit 1
        }
    fi
    say "making .venv with $("$python" --version) ($(command -v "$python"))"
    rm -f "$stamp" "$stamp-own"
    "$python" -m venv --clear "$venv"
    # A lock wants every hash; what pip itself is configured to find elsewhere must fit them too.
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
    inputs >"$stamp"
}

install_own() {
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
    own_inputs >"$stamp-own"
}

write_launcher() {
    local launcher=$prefix/bin/netprofiler content
    content=$(printf '%s\n' '#!/bin/sh' '# Written by make install: lets sudo, whose PATH is its own, find netprofiler.' \
        "exec '$venv/bin/netprofiler' \"\$@\"")
    if [ -f "$launcher" ] && [ -x "$launcher" ] && [ "$(cat "$launcher")" = "$content" ]; then
        return
    fi
    mkdir -p "$prefix/bin"
    printf '%s\n' "$content" >"$launcher"
    chmod 755 "$launcher"
    say "wrote $launcher"
}

programs_inputs() {  # what is compiled, how, and for which kernel
    uname -rv
    find bpf netprofiler/sources -name '*.[chp]*' -not -name '*.pyc' -type f -print0 | sort -z | xargs -0 sha256sum
}

compile_programs() {  # so that a first start has nothing to compile: without filters, and with one of the usual kinds
    "$venv/bin/python" -c '
from netprofiler.sources.kernel import Filters, KernelSource
for filters in (Filters(), Filters(pids=(1,)), Filters(ports=(80,)), Filters(comms=("init",))):
    KernelSource(filters).close()' 2>/dev/null || return 0  # where it cannot be done, that start says why
    programs_inputs >"$stamp-programs"
}

# Pip warns of it with every package where the environment names a directory of wheels that this machine has not.
case ${PIP_FIND_LINKS:-} in /*) [ -e "$PIP_FIND_LINKS" ] || unset PIP_FIND_LINKS ;; esac

if [ ! -x "$venv/bin/python" ] || ! fits "$stamp" "$(inputs)"; then
    make_venv
fi
if [ ! -x "$venv/bin/netprofiler" ] || ! fits "$stamp-own" "$(own_inputs)"; then
    install_own
fi
if [ "$(id -u)" = 0 ]; then
    write_launcher
    fits "$stamp-programs" "$(programs_inputs)" || compile_programs
fi
