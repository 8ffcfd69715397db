#!/usr/bin/env bash
# Write lock.txt anew from the direct pins, after one of them has moved. Takes minutes; look at the difference before committing it.
#   requirements/lock.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
.venv/bin/python -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --quiet --no-input --disable-pip-version-check --requirement requirements/base.txt --requirement requirements/dev.txt
{
    echo '# Every version, direct and transitive, of the first install step (`pip install -r base.txt -r dev.txt -c lock.txt`).'
    echo '# Written by requirements/lock.sh with Python 3.11 on Linux x86-64. The CUDA build of torch brings further packages, which torch pins itself.'
    # A local suffix (torch's +cpu) names one build; the constraint has to allow the others too. CUDA libraries are torch's own pins.
    "$scratch/venv/bin/python" -m pip freeze --all --exclude pip | sed 's/+[^+]*$//' | grep -viE '^(nvidia|cuda|triton=)'
} >"$scratch/lock.txt"
mv "$scratch/lock.txt" requirements/lock.txt
