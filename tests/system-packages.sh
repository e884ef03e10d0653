#!/usr/bin/env bash
# Finds or installs what the tests need beside Python: RabbitMQ, Chromium, nginx, Prometheus, strace; or those named.
# Where it can't, it says loudly which tests will be skipped; in CI (CI=true) that is a failure.
set -euo pipefail

installed() {
    case $1 in
        rabbitmq-server) [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] || command -v rabbitmq-server ;;
        chromium) command -v chromium || command -v chromium-browser || command -v google-chrome ;;
        nginx-light) PATH=$PATH:/usr/sbin command -v nginx ;;
        prometheus) command -v prometheus && command -v promtool ;;
        strace) command -v strace ;;
        *) false ;;
    esac > /dev/null
}

install() {
    local root=()
    if [[ $EUID -ne 0 ]]; then
        sudo -n true 2> /dev/null || return 1
        root=(sudo -n)
    fi
    command -v apt-get > /dev/null || return 1
    echo "installing $1 with apt-get" >&2
    # RUNLEVEL keeps Debian from starting the server: the tests start nodes of their own.
    local settings=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1)
    "${root[@]}" apt-get update -qq > /dev/null || true
    "${root[@]}" "${settings[@]}" apt-get install -y -qq --no-install-recommends "$1" > /dev/null
}

missing=()
wanted=("$@")
[[ $# -gt 0 ]] || wanted=(rabbitmq-server chromium nginx-light prometheus strace)
for package in "${wanted[@]}"; do
    installed "$package" || install "$package" || missing+=("$package")
done

if [[ ${#missing[@]} -gt 0 ]]; then
    {
        echo "**********************************************************************"
        echo "MISSING: ${missing[*]}"
        echo "Tests that need it are SKIPPED. On Debian: apt-get install ${missing[*]}"
        echo "**********************************************************************"
    } >&2
    # Packages asked for by name are needed by whoever asks.
    [[ $# -eq 0 && ${CI:-} != true ]]
fi
