#!/usr/bin/env bash
# Runs the tests that the arguments select, with the Python in $PYTHON. Without arguments these are all but those marked
# `slow`; where CI or ALL is set, all: first those marked `alone`, one at a time and untraced, since they measure speed,
# and then the others side by side. Fails where either part fails.
set -uo pipefail
python=${PYTHON:-python3}
each=1
if [[ $# -eq 0 && -z ${CI:-}${ALL:-} ]]; then
    set -- -m "not slow"
    each=2 # these wait more than they compute
fi
interrupted=2
nothing_selected=5

"$python" -m pytest --alone only "$@"
alone=$?
# By Ctrl-C, or by a file that could not be read: the rest would only hide it.
[[ $alone -ne $interrupted ]] || exit "$interrupted"
# Of all tests, no more at a time than there are cores: browsers, trainers and workers take theirs as well.
cores=$(($(nproc) < 8 ? $(nproc) : 8))
# Tracing takes half as long again, so only CI measures coverage; a selection has none to reach.
[[ $# -ne 0 || ${CI:-} != true ]] || set -- --cov --cov-report=term
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
{ "$python" -m pytest --alone skip -n "$((each * cores))" --dist loadfile --no-loadscope-reorder "$@" 2>&1 >&3 | tee "$errors" >&2; } 3>&1
others=$? # of pytest, by `pipefail`
# Where a process of the tests crashed, Python said how; not among hundreds of lines, but here it is found.
if grep -q "Fatal Python error" "$errors"; then
    echo "what crashed:"
    cat "$errors"
fi >&2

# A selection such as -k may leave nothing in one part, but not in both.
[[ $alone -ne $nothing_selected ]] || exit "$others"
[[ $others -ne $nothing_selected ]] || exit "$alone"
exit "$((others != 0 ? others : alone))"
