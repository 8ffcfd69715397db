#!/usr/bin/env bash
# Write lock.txt anew from the direct pins, after one of them has moved.
# It takes minutes; look at the difference before committing it.
#   requirements/lock.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
.venv/bin/python -m venv "$scratch/venv"
# An index, a wheel folder or a constraint of this machine must not decide what others install.
unset PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CONSTRAINT
export PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1
"$scratch/venv/bin/python" -m pip install --quiet pip==26.3
"$scratch/venv/bin/python" requirements/write_lock.py
