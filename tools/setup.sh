#!/bin/sh
# Sets up what the clone needs to run: finds a Python (3.11 to 3.13), then hands over to
# environment.py, which makes the environment and FFCV. Safe to call at any time, from any folder.
#
#   ADAFILTER_PYTHON=/path/to/python   use this Python
#   ADAFILTER_ENVS=/path/to/folder     keep environments there (default: ~/.cache/adafilter)
#   ADAFILTER_FFCV=never               leave FFCV and its system libraries alone
#   ADAFILTER_CONSTRAINTS=FILE         other versions than constraints.txt; empty for none
set -eu
tools=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

usable() {
    "$1" -c 'import ensurepip, ssl, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        >/dev/null 2>&1
}

find_python() {
    if [ -n "${ADAFILTER_PYTHON:-}" ]; then
        usable "$ADAFILTER_PYTHON" && echo "$ADAFILTER_PYTHON"
        return
    fi
    for name in python3.11 python3.12 python3.13 python3 python; do  # the best tested one first
        if usable "$name"; then echo "$name"; return; fi
    done
    # uv finds Pythons that are not on PATH.
    found=$(uv python find '>=3.11,<3.14' 2>/dev/null) && usable "$found" && echo "$found"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

# The newest Python that this Debian or Ubuntu offers, as the words to install.
apt_python() {
    for version in 3.13 3.12 3.11; do
        if apt-cache show "python$version-venv" >/dev/null 2>&1; then
            echo "python$version python$version-venv python$version-dev"
            return
        fi
    done
}

python=$(find_python) || python=
if [ -z "$python" ] && [ -z "${ADAFILTER_PYTHON:-}" ] && may_install; then
    echo "No Python 3.11 to 3.13 with its venv module here; asking apt-get for one."
    as_root apt-get update -qq || true
    packages=$(apt_python)
    # shellcheck disable=SC2086
    [ -z "$packages" ] || as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $packages >/dev/null
    python=$(find_python) || python=
fi
if [ -z "$python" ]; then
    {
        if [ -n "${ADAFILTER_PYTHON:-}" ]; then
            echo "error: ADAFILTER_PYTHON=$ADAFILTER_PYTHON is not a Python 3.11 to 3.13 with venv."
        else
            echo "error: no Python 3.11 to 3.13 with its venv module on PATH."
        fi
        echo "  Debian 12      sudo apt-get install python3.11-venv python3.11-dev"
        echo "  Ubuntu 24.04   sudo apt-get install python3.12-venv python3.12-dev"
        echo "  Ubuntu 22.04   sudo apt-get install python3.11-venv python3.11-dev"
        echo "  Fedora         sudo dnf install python3.12-devel"
        echo "  without root   conda create -n py312 python=3.12  or  uv python install 3.12"
        echo "then, where it is not on PATH:  make setup ADAFILTER_PYTHON=/path/to/python"
    } >&2
    exit 2
fi
exec "$python" "$tools/environment.py" "$@"
