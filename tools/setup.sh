#!/bin/sh
# Makes .venv with uv: this clone, what it needs at the versions of constraints.txt, and FFCV where
# that is possible. Safe to call at any time, from any folder; a second call has nothing to do.
#
#   ADAFILTER_PYTHON=3.12        this Python: a version, a name or a path
#   ADAFILTER_FFCV=never         leave FFCV and its system libraries alone
#   ADAFILTER_CONSTRAINTS=FILE   other versions than constraints.txt; empty for the newest
#   ADAFILTER_TORCH_INDEX=URL    a mirror of PyTorch's index; empty for the registry's build
#
# What was chosen stays until something else is, or .venv is removed. The variables of uv
# (UV_CACHE_DIR, UV_DEFAULT_INDEX) and the settings of pip (PIP_INDEX_URL, pip.conf) hold.
set -eu
tools=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$tools/.."
venv=$PWD/.venv
log=$venv/setup.log
begun=$venv/adafilter-begun     # this .venv is ours
chosen=$venv/adafilter-chosen   # the variables that it was made with
ready=$venv/adafilter-ready     # what it was made of; then why FFCV is missing, if it is
# shellcheck disable=SC1090
[ ! -e "$chosen" ] || . "$chosen"
constraints=${ADAFILTER_CONSTRAINTS-constraints.txt}
torch_index=${ADAFILTER_TORCH_INDEX-https://download.pytorch.org/whl/cpu}
cache=${ADAFILTER_CACHE:-${XDG_CACHE_HOME:-${HOME:-$PWD}/.cache}/adafilter}
[ -z "${ADAFILTER_CACHE:-}" ] || export UV_CACHE_DIR="${UV_CACHE_DIR:-$cache/uv-cache}"
no_index=

# What an activated .venv offers, uv and python3, would go with it.
unset VIRTUAL_ENV
case :$PATH: in
    *":$venv/bin:"*)
        path=:$PATH:
        path=${path%%":$venv/bin:"*}:${path#*":$venv/bin:"}
        PATH=${path#:}
        PATH=${PATH%:}
        ;;
esac

fail() {
    echo "error: $1" >&2
    [ -z "${kept:-}" ] || printf '%s\n' "$kept" >"$ready"
    exit 2
}

find_uv() {
    for uv in uv "$cache/uv/bin/uv"; do
        "$uv" cache dir >/dev/null 2>&1 && return  # fails below tool.uv.required-version
    done
    return 1
}

get_uv() {
    mkdir -p "$cache" 2>/dev/null && : 2>/dev/null >"$cache/uv.lock" ||
        fail "cannot write $cache; ADAFILTER_CACHE can name another folder"
    exec 8>"$cache/uv.lock"
    flock 8 || true
    find_uv || put_uv
    exec 8>&-
}

put_uv() {
    echo "uv: into $cache/uv"
    python3 -m venv --clear "$cache/uv" >/dev/null 2>&1 ||
        { "$tools/packages.sh" python3-venv && python3 -m venv --clear "$cache/uv"; } ||
        fail "uv is not on PATH, and python3 with venv, to install it, is not either: \
sudo apt-get install python3-venv, or install uv as docs.astral.sh/uv says"
    said=$("$cache/uv/bin/python" -m pip install --quiet --retries 1 --upgrade uv 2>&1) && find_uv ||
        fail "uv is not on PATH, and pip cannot install it \
($(printf '%s' "$said" | tail -n 1)): check the network, or install uv as docs.astral.sh/uv says"
}

# uv does not read pip's configuration: the site's mirrors and certificates are handed over.
read_pip() {
    while read -r name value; do
        case $name in
            index-url) name=UV_DEFAULT_INDEX ;;
            extra-index-url) name=UV_INDEX ;;
            find-links) name=UV_FIND_LINKS value=$(echo "$value" | tr -s ' ' ',') ;;
            trusted-host) name=UV_INSECURE_HOST ;;
            cert) name=SSL_CERT_FILE ;;
            proxy) name=ALL_PROXY ;;
            no-index) no_index=--no-index && continue ;;
            *) continue ;;
        esac
        eval "[ -n \"\${$name:-}\" ]" || export "$name=$value"
    done <<SETTINGS
$(python3 -m pip config list 2>/dev/null |
    sed -n "s/\\\\n/ /g; s/^[a-z:]*\.\([a-z-]*\)='\(.*\)'\$/\1 \2/p")
SETTINGS
    # To pip all indexes are equal.
    export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
}

# Where Python may not write its bytecode when it runs, every start would compile it again.
install() {
    "$uv" pip install --python "$venv" ${no_index:+"$no_index"} \
        ${PYTHONDONTWRITEBYTECODE:+--compile-bytecode} ${constraints:+-c "$constraints"} "$@"
}

# From uv's cache where all of it is there at these versions; otherwise a plan, then the packages.
get() {
    [ -z "$constraints" ] || ! install --offline "$@" >"$log" 2>&1 || return 0
    if install --dry-run "$@" >"$log" 2>&1; then
        install "$@"
        return
    fi
    why=$(tail -n 1 "$log")
    ! grep -q 'error sending request' "$log" ||
        fail "the packages cannot be fetched (${why#*: }): check the network, or name a mirror \
(UV_DEFAULT_INDEX=URL, or pip's index-url)"
    cat "$log" >&2
    return 1
}

# Where an index is named, or there is no GPU; on a cluster's login node the GPUs are elsewhere.
wants_cpu_torch() {
    [ -n "$torch_index" ] && [ -z "${UV_TORCH_BACKEND:-}" ] || return
    [ -n "${ADAFILTER_TORCH_INDEX:-}" ] ||
        ! { [ -e /dev/nvidiactl ] || command -v nvidia-smi || command -v sbatch; } >/dev/null
}

cpu_torch() {
    wants_cpu_torch || return 0
    if ! (torch_from_index); then
        why=$(tail -n 1 "$log")
        echo "PyTorch: the registry's build, as $torch_index has none (${why#*: })"
    fi
}

torch_from_index() {
    export UV_INDEX='' UV_FIND_LINKS=''
    set -- --no-deps --default-index "$torch_index" torch torchvision torchcodec
    ! install --offline "$@" >"$log" 2>&1 || return 0
    (
        export UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=0
        install --dry-run "$@" >"$log" 2>&1
    ) && install "$@"
}

make_venv() {
    rm -rf "$venv"
    mkdir "$venv"
    touch "$begun"
    said=$("$uv" venv --quiet --allow-existing ${ADAFILTER_PYTHON:+"--python=$ADAFILTER_PYTHON"} \
        "$venv" 2>&1) && said=": $("$venv/bin/python" -V)" && usable && return
    why=$(printf '%s' "$said" | tail -n 1)
    [ -n "${ADAFILTER_PYTHON:-}" ] ||
        fail "no Python 3.11 to 3.13 on PATH, and uv cannot download one (${why#*: }): \
sudo apt-get install python3.11-dev or newer, or ADAFILTER_PYTHON=/path/to/python"
    fail "ADAFILTER_PYTHON=$ADAFILTER_PYTHON is no Python 3.11 to 3.13 (${why#*: }): name another, \
or none for what uv has on PATH or downloads"
}

usable() {
    "$venv/bin/python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
}

lacking() {  # what FFCV cannot be compiled without
    for tool in pkg-config g++; do command -v $tool >/dev/null || echo $tool; done
    for library in opencv4 libturbojpeg; do
        pkg-config --exists $library 2>/dev/null || echo $library
    done
    "$venv/bin/python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' \
        2>/dev/null || echo Python.h
}

loads() {
    "$venv/bin/python" -c 'import ctypes, glob, sys; any(map(ctypes.CDLL, glob.glob(sys.argv[1]))) or sys.exit(1)' \
        "$venv/lib/python*/site-packages/ffcv/_libffcv*.so" 2>/dev/null
}

again() {
    "$uv" cache clean --quiet ffcv && install --reinstall-package ffcv --exact -e '.[dev,ffcv]' && loads
}

# Fails after it said why; then everything but FFCV is still to be installed.
with_ffcv() {
    if [ -n "$(lacking)" ]; then
        dev=$("$venv/bin/python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')
        set -- libopencv-dev libturbojpeg0-dev pkg-config g++ "$dev"
        "$tools/packages.sh" "$@" || true
        missing=$(lacking | xargs)
        [ -z "$missing" ] || {
            missing="it needs $missing: sudo apt-get install $*"
            return 1
        }
    fi
    # It then needs two of OpenCV's libraries instead of all fifty.
    export LDFLAGS="${LDFLAGS:-} -Wl,--as-needed"
    missing="it does not compile"
    get --exact -e '.[dev,ffcv]' || return
    # uv keeps what it compiled; the system's libraries may have changed since.
    missing="it was compiled but does not load"
    loads || again || return
    missing=
}

tell() {
    missing=$(sed -n 2p "$ready")
    [ -z "$missing" ] || echo "FFCV is not installed ($missing); \`make ffcv\` tries again. Without it \
the torchvision loader reads the same pictures, 2 to 5 times slower."
    echo "ready: source $venv/bin/activate"
}

[ ! -d "$venv" ] || [ -e "$begun" ] || [ -e "$venv/adafilter.json" ] || [ -z "$(ls -A "$venv")" ] ||
    fail "$venv was not made by this set-up; move it out of the way and try again"
exec 9>.venv.lock
flock -n 9 || { echo "waiting for another set-up of this clone" && flock 9; } || true

place="$venv ${ADAFILTER_PYTHON:-} $torch_index"
made="$place ${ADAFILTER_FFCV:-} $(cat pyproject.toml "${constraints:-/dev/null}" "$0" | cksum)"
previous=$(sed -n 1p "$ready" 2>/dev/null) || previous=
[ -x "$venv/bin/python" ] || previous=
if [ "$previous" = "$made" ] && { [ "$*" != --ffcv ] || loads; }; then
    tell
    exit
fi

find_uv || get_uv
read_pip
case $previous in
    "$place "*) kept=$previous ;;  # other requirements: only the difference
    *) make_venv ;;
esac
rm -f "$ready"
cpu_torch
missing=
if [ "${ADAFILTER_FFCV:-}" = never ] || ! with_ffcv; then
    get --exact -e '.[dev]' || fail 'the packages cannot be installed, see above'
fi
set | sed -n 's/^\(ADAFILTER_\(PYTHON\|FFCV\|CONSTRAINTS\|TORCH_INDEX\)\)=.*/[ "${\1+x}" ] || &/p' >"$chosen"
printf '%s\n%s\n' "$made" "$missing" >"$ready"
tell
