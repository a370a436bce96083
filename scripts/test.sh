#!/usr/bin/env bash
# Runs pytest; what needs the kernel runs as root, by sudo where this is not root.
#   scripts/test.sh [PYTEST ARGUMENT...]     without an argument: all tests, in two runs at once
# The second of the two has what the first leaves of the processors: it builds the Go programs that the first will need, and then
# runs the tests that need no kernel. What it says is in build/test-user.log, and here when both have ended.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$(scripts/go.sh):$PATH:/usr/sbin:/sbin
export PATH GOTOOLCHAIN=local
python=$PWD/.venv/bin/python
user_tests="not kernel and not real"
kernel_tests="kernel or real"

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --preserve-env=NETPROFILER_REQUIRE_KERNEL,NETPROFILER_TEST_USER,CI,GOTOOLCHAIN env "PATH=$PATH" "$@"
    else
        echo "test: the kernel part needs root, and there is no sudo here: run make test as root" >&2
        return 1
    fi
}

if [ $# != 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        exec "$python" -m pytest "$@"
    fi
    # 5: none of the tests that were asked for is of this kind.
    "$python" -m pytest -m "$user_tests" "$@" || [ $? = 5 ]
    as_root "$python" -m pytest -p no:cacheprovider -m "$kernel_tests" "$@" || [ $? = 5 ]
    exit
fi

mkdir -p build
set -m # a process group of its own, to be ended as a whole
nice -n 19 bash -c '"$0" -m tests.real.harness.go_programs; exec "$0" -m pytest -m "$1"' "$python" "$user_tests" \
    >build/test-user.log 2>&1 &
user_run=$!
set +m
trap 'kill -- "-$user_run" 2>/dev/null || true' EXIT

kernel_status=0 user_status=0
as_root "$python" -m pytest -p no:cacheprovider -m "$kernel_tests" 2>&1 | tee build/test-kernel.log || kernel_status=$?
wait "$user_run" || user_status=$?

if [ "$user_status" = 0 ]; then
    sed -n '/short test summary info/,$p' build/test-user.log
else
    cat build/test-user.log
fi
printf 'test: %s (with the kernel)\ntest: %s (without)\n' \
    "$(tail -n 1 build/test-kernel.log)" "$(tail -n 1 build/test-user.log)"
[ "$kernel_status" = 0 ] && [ "$user_status" = 0 ]
