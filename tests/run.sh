#!/usr/bin/env bash
# Runs the tests that the arguments select, with the Python in $PYTHON. Without arguments these are the quick ones, and
# where CI or ALL is set, those marked `slow` too. Those marked `alone` run one at a time, since they measure speed, the
# others side by side. Fails where any of them fails.
set -uo pipefail
python=${PYTHON:-python3}
cores=$(($(nproc) < 8 ? $(nproc) : 8))
interrupted=2
nothing_selected=5
result=$nothing_selected
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

# Keeps the exit code of the first part that failed.
keep() {
    # By Ctrl-C, or by a file that could not be read: the rest would only hide it.
    [[ $1 -ne $interrupted ]] || exit "$interrupted"
    # A selection such as -k may leave nothing in one part, but not in all.
    [[ $1 -eq $nothing_selected || ($result -ne 0 && $result -ne $nothing_selected) ]] || result=$1
}

alone() {
    "$python" -m pytest --alone only "$@"
    keep $?
}

# The first argument says how many tests run at a time.
side_by_side() {
    { "$python" -m pytest --alone skip -n "$1" --dist loadfile --no-loadscope-reorder "${@:2}" 2>&1 >&3 | tee -i "$errors" >&2; } 3>&1
    local code=$? # of pytest, by `pipefail`; Ctrl-C ends pytest and not `tee`
    # Where a process of the tests crashed, Python said how; not among hundreds of lines, but here it is found.
    if grep -q "Fatal Python error" "$errors"; then
        echo "what crashed:"
        cat "$errors"
    fi >&2
    keep $code
}

if [[ $# -ne 0 ]]; then
    alone "$@"
    side_by_side "$cores" "$@"
else
    # Quick tests wait more than they compute. Tracing takes half as long again, so only CI measures their coverage.
    coverage=()
    slowest=()
    [[ ${CI:-} != true ]] || coverage=(--cov --cov-report=term) slowest=(--durations=25)
    if [[ -n ${CI:-}${ALL:-} ]]; then
        alone
        # Browsers, trainers and workers take cores as well.
        side_by_side "$cores" -m slow "${slowest[@]}"
    fi
    side_by_side $((2 * cores)) -m "not slow" "${coverage[@]}" "${slowest[@]}"
fi
exit "$result"
