#!/usr/bin/env bash
# Create .venv and install what the requirement files pin; do nothing when that is already so.
# Called by `make setup`.
#   requirements/install.sh cpu|cuda
#   PYTHON=/opt/python3.12/bin/python3 requirements/install.sh cpu
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu requirements/install.sh cpu    (see torch.txt)
set -euo pipefail
cd "$(dirname "$0")/.."
flavour=${1:?say cpu or cuda}
# Flavour and digest of the last complete install.
stamp=.venv/passerelle-installed
# It is there while pip works: if it is there at the start, the last run was cut short.
begun=.venv/passerelle-installing

# The folder is part of the digest because the editable install and the scripts hold its name.
pinned=(requirements/{install.sh,base.txt,dev.txt,lock.txt,torch.txt,"torchrec-$flavour.txt"} pyproject.toml)
digest=$({ pwd; cat "${pinned[@]}"; } | sha256sum | cut -c 1-64)
if [[ -e $stamp && ! -e $begun && $(<"$stamp") == "$flavour $digest" ]]; then
    exit 0
fi

# The end of the range is what the Triton server's Python stubs cover.
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
find_python() {
    local candidate candidates=${PYTHON:-python3.11 python3.12 python3.13 python3}
    for candidate in $candidates; do
        if "$candidate" -c "$fits" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: Python 3.11, 3.12 or 3.13 is needed, and none of these is one: $candidates." \
        "Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
    return 1
}

keep_environment() {
    # A half-installed package looks installed to pip.
    [[ ! -e $begun ]] || return 1
    # The two fbgemm builds overwrite each other's files.
    [[ ! -e $stamp || $(<"$stamp") == "$flavour "* ]] || return 1
    # In a folder that was moved or copied the scripts start another Python.
    grep --quiet --fixed-strings "$PWD/.venv/bin/" .venv/bin/pip || return 1
    .venv/bin/python -c "import pip; $fits"
}

if ! keep_environment 2>/dev/null; then
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "setup: $python has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    echo "setup: creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

rm -f "$stamp"
touch "$begun"
echo "setup: installing ($flavour); about a minute with an empty cache"
pip=(.venv/bin/python -m pip install --quiet --quiet --no-input --disable-pip-version-check --no-compile)
uv=(.venv/bin/uv pip install --quiet --python .venv/bin/python)
# uv reads neither pip's configuration nor its variables.
index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
[[ -z $index ]] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
[[ -z ${PIP_CERT:-} ]] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
# The same with pip, minutes slower, where uv cannot reach what pip reaches.
install() { "${uv[@]}" "$@" || "${pip[@]}" "$@"; }

locked_uv=$(sed -n '/^uv==/,/[^\\]$/p' requirements/lock.txt)
"${pip[@]}" --no-deps --require-hashes --requirement <(echo "$locked_uv")
# The lock is complete and the dependencies of torchrec-*.txt are wrong: nobody looks for further ones.
install --no-deps --require-hashes --requirement requirements/lock.txt
# With pip, which knows the wheels and indexes of torch that this machine has been told of.
"${pip[@]}" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement requirements/torch.txt
install --no-deps --require-hashes --requirement "requirements/torchrec-$flavour.txt"
install --no-deps --no-build-isolation --editable .
# With every core; a file that another Python is meant for is no failure.
.venv/bin/python -m compileall -q -j 0 -x '/tests?/' .venv/lib >/dev/null 2>&1 || true
rm "$begun"
echo "$flavour $digest" >"$stamp"
echo "setup: done. Next: make demo, or .venv/bin/passerelle doctor"
