#!/usr/bin/env bash
# Installs the Debian packages of the given lists that are not there yet; does nothing, and asks for nothing, when all are.
#   scripts/debian.sh LIST...
# A list has a line for each package: its name, then what shows that it is there already, however it came: a command or a path.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "packages: $*" >&2; }

present() {  # present PROBE: a command on PATH, or a path (a pattern may be one) that exists
    case $1 in
        /*) compgen -G "$1" >/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

missing=()
while read -r package probe; do
    case $package in '' | '#'*) continue ;; esac
    present "$probe" || missing+=("$package")
done < <(cat "$@")
if [ ${#missing[@]} = 0 ]; then
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    say "this machine lacks: ${missing[*]}; there is no apt-get here, install what your distribution calls them"
    exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        say "this machine lacks: ${missing[*]}; as root: apt-get install ${missing[*]}"
        exit 1
    }
    as_root=(sudo)
fi

# Servers are wanted as programs, not as services: Debian asks this file whether a fresh one may start. 101: it may not.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >&2; }

say "installing ${missing[*]}"
# Package lists that are not there, or too old, show as a failure; only then are they fetched.
if ! apt install --yes --no-install-recommends "${missing[@]}" 2>/dev/null; then
    apt update
    apt install --yes --no-install-recommends "${missing[@]}"
fi
