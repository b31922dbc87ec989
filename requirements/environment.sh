#!/bin/sh
# Makes .venv hold what requirements.txt and the pins of the extras named as arguments say, e.g. `environment.sh dev`.
# `environment.sh interop` makes .venv-interop hold what requirements/interop.txt says, which fits beside nothing else.
#
# Finds a working CPython 3.11 or 3.10 itself (or takes $PYTHON), installs with uv where uv is on the PATH, else with
# pip. A copy of each pinned file is left in .venv/pinned/ once all of it is installed: a second run ends at once, and
# changed pins are installed. After an installation that was cut off or failed the next run starts over in a new .venv,
# as nobody can tell which of its packages are whole; what was downloaded is kept by uv or pip.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
files=requirements.txt
size="2.6 GB"
for extra in "$@"; do
    files="$files requirements/$extra.txt"
done
if [ "$*" = interop ]; then
    venv=.venv-interop
    files=requirements/interop.txt
    size="0.6 GB"
fi
cut_off=$venv/installing

fail() {
    echo "environment: $1" >&2
    exit 1
}

# Says in a few words why the interpreter $1 cannot run the toolkit; succeeds silently if it can.
examine() {
    "$1" -c '
import platform, sys
if sys.version_info[:2] not in ((3, 10), (3, 11)):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
if platform.python_implementation() != "CPython" or sys.maxsize < 2**32:
    sys.exit("is not a 64-bit CPython")
libc, release = platform.libc_ver()
if libc != "glibc" or tuple(map(int, release.split(".")[:2])) < (2, 31):
    sys.exit("runs on %s %s, not on glibc 2.31 or newer" % (libc or "an unknown C library", release))
for module in ["venv", "ensurepip", "ssl", "zlib", "ctypes"]:
    try:
        __import__(module)
    except ImportError:
        package = "python%d.%d-venv" % sys.version_info[:2]
        advice = " (on Debian and Ubuntu: apt install %s)" % package if module in ("venv", "ensurepip") else ""
        sys.exit("lacks the module %s%s" % (module, advice))
' 2>&1 | tail -n 1
}

# Sets `python` to a suitable interpreter, or ends with one line on what is missing.
find_python() {
    set -- python3.11 python3.10 python3 python "$(managed_python)"
    [ -z "${PYTHON:-}" ] || set -- "$PYTHON"
    reasons=
    for python in "$@"; do
        command -v "$python" >/dev/null 2>&1 || continue
        # A version manager leaves commands on the PATH that only say which version to activate.
        "$python" -c '' >/dev/null 2>&1 || continue
        reason=$(examine "$python")
        [ -n "$reason" ] || return 0
        reasons="$reasons; $python $reason"
    done
    reasons=${reasons#; }
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON cannot be used: ${reasons:-it does not run}; name a CPython 3.11 or 3.10"
    fi
    fail "no usable Python 3.11 or 3.10: ${reasons:-no python on the PATH}; install one with its venv module, or name one: make PYTHON=/path/to/python3.11"
}

# Prints the path of an interpreter that uv keeps off the PATH, if uv and such an interpreter are there.
managed_python() {
    ! has_uv || uv python find --no-project --no-python-downloads --managed-python '>=3.10,<3.12' 2>/dev/null || true
}

has_uv() {
    command -v uv >/dev/null 2>&1
}

# Whether .venv can be installed into, and runs the Python that was asked for.
venv_works() {
    [ ! -e "$cut_off" ] && "$venv/bin/python" -c '
import sys
assert sys.prefix != sys.base_prefix and sys.version_info[:2] in ((3, 10), (3, 11))' >/dev/null 2>&1 || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$venv/bin/python")" ]
}

version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1
}

install() {
    if has_uv; then
        UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} UV_HTTP_RETRIES=${UV_HTTP_RETRIES:-10} UV_PYTHON_DOWNLOADS=never \
            uv pip install --python "$venv/bin/python" --no-deps --require-hashes "$@"
    else
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null || return 1
        PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-120} PIP_RETRIES=${PIP_RETRIES:-10} PIP_USER=0 \
            "$venv/bin/python" -m pip --no-input --disable-pip-version-check install --no-deps --require-hashes "$@"
    fi
}

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    fail "TensorFlow Federated 0.87 runs on Linux x86-64 only, this is $(uname -s) $(uname -m); use a Linux machine or container"

# Two runs at once take turns.
exec 9<requirements.txt
! command -v flock >/dev/null 2>&1 || flock 9

for extra in "$@"; do
    [ -f "requirements/$extra.txt" ] && [ "$extra" != interop ] || [ "$*" = interop ] ||
        fail "no extra is named '$extra'; there are: $(cd requirements && echo *.txt | sed 's/interop\.txt //; s/\.txt//g')"
done

if ! venv_works; then
    find_python
    echo "environment: making $venv with $python, Python $(version "$python")"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$python could not make $venv, see above"
fi

wanted=
for file in $files; do
    cmp -s "$file" "$venv/pinned/${file##*/}" || wanted="$wanted -r $file"
done
[ -n "$wanted" ] || exit 0

echo "environment: installing$(echo "$wanted" | sed 's/ -r / /g') into $venv (about $size in all)"
touch "$cut_off"
tries=3
# shellcheck disable=SC2086  # The names of the pinned files hold no spaces.
until install $wanted; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || fail "the installation failed, see above; the same command tries it again"
    echo "environment: the installation failed, see above; trying again" >&2
done
mkdir -p "$venv/pinned"
for file in $wanted; do
    [ "$file" = -r ] || cp "$file" "$venv/pinned/${file##*/}"
done
rm -f "$cut_off"
