#!/usr/bin/env bash
# All static checks, in the order of their speed; what pre-commit runs is this, and what CI runs is this.
#   scripts/lint.sh [--fix]     --fix: mend what a tool can mend
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
shopt -s globstar nullglob
fix=${1:-}

mapfile -t c_files < <(printf '%s\n' bpf/**/*.c bpf/**/*.h tests/**/*.c | grep . || true)
go_modules=()
for directory in server traffic benchmarks/load tests/real/programs/go_tls tests/real/programs/go_tls/chi tests/real/programs/http2_go tests/real/programs/grpc_go tests/real/programs/tiny stacks/bookinfo/details; do
    [ -f "$directory/go.mod" ] && go_modules+=("$directory")
done
if [ ${#go_modules[@]} != 0 ]; then
    PATH=$(scripts/go.sh):$PATH
fi

if [ "$fix" = --fix ]; then
    "$bin/ruff" check --quiet --fix . || true
    "$bin/ruff" format --quiet .
    [ ${#c_files[@]} = 0 ] || "$bin/clang-format" -i "${c_files[@]}"
    [ ${#go_modules[@]} = 0 ] || gofmt -w "${go_modules[@]}"
fi

"$bin/ruff" check --quiet .
"$bin/ruff" format --quiet --check .
[ ${#c_files[@]} = 0 ] || "$bin/clang-format" --dry-run --Werror "${c_files[@]}"
if ! contracts=$("$bin/lint-imports" --no-cache 2>&1); then
    printf '%s\n' "$contracts" >&2
    exit 1
fi
"$bin/mypy" --no-error-summary
for directory in "${go_modules[@]}"; do
    unformatted=$(gofmt -l "$directory")
    if [ -n "$unformatted" ]; then
        printf 'gofmt would change:\n%s\n' "$unformatted" >&2
        exit 1
    fi
    (cd "$directory" && GOTOOLCHAIN=local go vet ./...)
done
echo "lint: fine"
