#!/usr/bin/env bash
# What some tests need beside Python packages: a Redis or Valkey server, a browser with its driver, data sets.
# Installs the programs where it may (root, with apt), else says in one line what is skipped.
# Called by `make test`.
#   requirements/system.sh
set -euo pipefail
cd "$(dirname "$0")/.."

has() { command -v "$1" >/dev/null; }
has_redis() { has redis-server || has valkey-server; }
has_browser() { has chromium && has chromedriver; }

updated=
install() {
    [[ $(id -u) == 0 ]] && has apt-get || return 1
    if [[ -z $updated ]]; then
        echo "test: installing what some tests need; about a minute, once"
        apt-get update --quiet >/dev/null 2>&1 || true
        updated=1
    fi
    # Another apt may be at work on a machine that has just started.
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install --yes --quiet --no-install-recommends "$@" >/dev/null 2>&1
}

has_redis || install redis-server || install valkey-server || true
has_browser || install chromium chromium-driver || true

why="apt-get could not install it"
[[ $(id -u) == 0 ]] || why="not root"
has apt-get || why="no apt-get here"
lacking=()
has_redis || lacking+=("redis-server or valkey-server ($why)")
has_browser || lacking+=("chromium with chromedriver ($why)")
data=${PASSERELLE_DATA:-../shared/data}
[[ -d $data ]] || lacking+=("public data sets (no folder ${PASSERELLE_DATA:-$data; \$PASSERELLE_DATA may name one})")
if (( ${#lacking[@]} )); then
    list=$(printf ', %s' "${lacking[@]}")
    echo "test: skipped is what needs ${list:2}"
fi
