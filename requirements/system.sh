#!/usr/bin/env bash
# What some tests want from the system: a Redis server, and a browser with its driver. Called by .ci/run; without them those tests are skipped.
#   requirements/system.sh
set -euo pipefail
packages=(redis-server chromium chromium-driver)
if command -v redis-server >/dev/null && command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "${packages[@]}"
}
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null || ! { install || { apt-get update --quiet && install; }; } >/dev/null 2>&1; then
    echo "system: tests that want them are skipped: ${packages[*]}" >&2
fi
