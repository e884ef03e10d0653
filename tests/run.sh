#!/usr/bin/env bash
# Runs all tests, or those that the arguments select, with the Python in $PYTHON: most of them side by side, and then
# those marked `alone`, one at a time and untraced, since they measure speed. Fails where either part fails.
set -uo pipefail
python=${PYTHON:-python3}
nothing_selected=5

"$python" -m pytest --alone skip -n 2 --dist loadfile --cov --cov-report=term "$@"
beside=$?
# Interrupted, by Ctrl-C or by a file that could not be read: the rest would only hide it.
[[ $beside -ne 2 ]] || exit 2
"$python" -m pytest --alone only "$@"
alone=$?

# A selection such as -k may leave nothing in one part, but not in both.
[[ $alone -ne $nothing_selected ]] || exit "$beside"
[[ $beside -ne $nothing_selected ]] || exit "$alone"
exit "$((beside != 0 ? beside : alone))"
