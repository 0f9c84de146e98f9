#!/usr/bin/env bash
# Puts WiredTiger's Python package in place for the tests and prints the path of a Python that imports it: the last
# line on stdout. Everything else goes to stderr. See usage() below.
#
# The package has no wheels, so it is built from its source: two and a half minutes of a core. What its setup wants to
# have on the system (cmake, ninja, swig) comes from wheels with known sums and is thrown away afterwards. Its setup is
# passed by, because it leaves no way to build a compressor in.
set -euo pipefail

# Raise it when the layout of a cached directory changes, so that older ones are not used.
LAYOUT=1
VERSION=11.3.1

# It cannot be built on this machine; the tests that need it say so and pass.
CANNOT=3

usage() {
    cat >&2 <<'USAGE'
usage: get-wiredtiger.sh

Looks for a Python with WiredTiger in this order:
  $PBMFS_WIREDTIGER_PYTHON  taken as it is, if it imports wiredtiger
  the cache                 ${PBMFS_RIG_DIR:-${XDG_CACHE_HOME:-~/.cache}/pbm-fs-rig}
  pip                       60 MB to fetch, sums checked, 3 to 5 minutes; 10 MB stay. Needs python3 with pip, venv and
                            headers (Debian: python3-dev, python3-pip) and gcc; no root. With snappy where its headers
                            are (Debian: libsnappy-dev) or apt-get can fetch them.

Exit code 3: it is not there and cannot be built here.
USAGE
}

say() { printf 'get-wiredtiger: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}
cannot() {
    say "WIREDTIGER CANNOT BE HAD HERE: $*"
    exit "$CANNOT"
}

case ${1:-} in
    '') ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage
        exit 2
        ;;
esac

imports() { "$1" -c 'import wiredtiger; wiredtiger.wiredtiger_open' >/dev/null 2>&1; }

# --- 1. $PBMFS_WIREDTIGER_PYTHON --------------------------------------------------------------------------
if [[ -n ${PBMFS_WIREDTIGER_PYTHON:-} ]]; then
    found=$(command -v -- "$PBMFS_WIREDTIGER_PYTHON") ||
        die "\$PBMFS_WIREDTIGER_PYTHON is '$PBMFS_WIREDTIGER_PYTHON', which is not an executable"
    imports "$found" || die "\$PBMFS_WIREDTIGER_PYTHON is '$PBMFS_WIREDTIGER_PYTHON', which does not import wiredtiger"
    realpath -s -- "$found"
    exit 0
fi

# --- 2. The cache -----------------------------------------------------------------------------------------
command -v python3 >/dev/null || cannot "python3 is missing"
# Behind the shims of version managers.
python=$(python3 -c 'import sys; print(sys.executable)') || cannot "python3 does not run"
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')

if [[ -n ${PBMFS_RIG_DIR:-} ]]; then
    cache=$PBMFS_RIG_DIR
elif [[ -n ${XDG_CACHE_HOME:-} ]]; then
    cache=$XDG_CACHE_HOME/pbm-fs-rig
else
    [[ -n ${HOME:-} ]] || die "no place to keep WiredTiger: set PBMFS_RIG_DIR or HOME"
    cache=$HOME/.cache/pbm-fs-rig
fi
mkdir -p -- "$cache" || die "cannot make the cache directory $cache"
cache=$(cd -- "$cache" && pwd)
place=$cache/wiredtiger-$VERSION-$tag-$LAYOUT

finish() {
    printf '%s\n' "$place/bin/python"
    exit 0
}
! imports "$place/bin/python" || finish

# --- 3. Building it ---------------------------------------------------------------------------------------
[[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] || cannot "the tools' wheels are for Linux on x86_64"
command -v gcc >/dev/null || cannot "gcc is missing (Debian: build-essential)"
"$python" -m pip --version >/dev/null 2>&1 || cannot "pip for python3 is missing (Debian: python3-pip)"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[[ -f $headers/Python.h ]] || cannot "$headers/Python.h is missing (Debian: python3-dev)"

# With flock the second of two waits for the first and finds its work done. Without it both build, which costs time
# and nothing else: the rename below is what makes it safe.
if command -v flock >/dev/null; then
    exec 9>"$cache/.lock-wiredtiger"
    flock 9
    ! imports "$place/bin/python" || finish
fi

temp=$(mktemp -d -- "$cache/.new-XXXXXX")
trap 'rm -rf -- "$temp"' EXIT
trap 'exit 130' INT TERM
log=$temp/build.log

# quietly WHAT COMMAND…: runs it, and ends this script with the end of its output if it fails.
quietly() {
    local what=$1
    shift
    "$@" >"$log" 2>&1 && return
    tail -n 15 "$log" >&2
    cannot "$what failed"
}

cat >"$temp/tools.txt" <<'TOOLS'
cmake==3.31.10 --hash=sha256:2f766bb46367e5e0559fa33184653754bce044583a06014dcaebf8e6dff8a1f1
ninja==1.13.2 --hash=sha256:65a24341b5ac09fcadcc37082660be40a94174e51a937fabf6e2cae26225fa2c
setuptools==80.9.0 --hash=sha256:062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922
swig==4.2.1.post0 --hash=sha256:bf1d1887355b235e7e817b2c5f7195e5152c2355daa326a2b6e6e5e54bf47859
TOOLS
cat >"$temp/source.txt" <<SOURCE
wiredtiger==$VERSION --hash=sha256:95052d1b6fc06921dd617aafa1ba2a773d8dbbbf2eb74f77147290a630e598d0
SOURCE

pip() { "$python" -m pip "$@"; }

say "building WiredTiger $VERSION into $place: some minutes, once"
quietly "fetching the build tools" pip install --quiet --disable-pip-version-check --no-warn-script-location --no-deps \
    --only-binary :all: --require-hashes --target "$temp/tools" -r "$temp/tools.txt"
# pip asks a source package for its metadata even when it only fetches it: setuptools is for that.
export PYTHONPATH=$temp/tools PATH=$temp/tools/bin:$PATH
quietly "fetching WiredTiger" pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --no-binary :all: --require-hashes --dest "$temp" -r "$temp/source.txt"
mkdir -- "$temp/source" "$temp/snappy"
tar -xzf "$temp/wiredtiger-$VERSION.tar.gz" -C "$temp/source" --strip-components=1

quietly "making a virtual environment" "$python" -m venv --without-pip --symlinks "$temp/tree"
# They name the temporary directory, and nobody needs them.
rm -f -- "$temp/tree/bin/"[Aa]ctivate*

# Snappy, which is what mongod uses: the system's, or the distribution's unpacked beside the module.
options=()
has_snappy() { printf '#include <snappy.h>\n#include <snappy-c.h>\n' | gcc -x c++ -E - >/dev/null 2>&1; }
unpack_snappy() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    (cd -- "$temp/snappy" && apt-get download libsnappy-dev libsnappy1v5) >"$log" 2>&1 || return 1
    local deb library
    for deb in "$temp/snappy/"*.deb; do
        dpkg-deb -x "$deb" "$temp/snappy" || return 1
    done
    library=$(find "$temp/snappy" -type f -name 'libsnappy.so.1.*' -print -quit)
    [[ -n $library ]] || return 1
    cp -- "$library" "$temp/tree/lib/libsnappy.so.1"
    options+=(-DCMAKE_PREFIX_PATH="$temp/snappy/usr" -DCMAKE_BUILD_RPATH="$place/lib"
        -DCMAKE_C_FLAGS="-I$temp/snappy/usr/include")
}
if has_snappy || unpack_snappy; then
    options+=(-DHAVE_BUILTIN_EXTENSION_SNAPPY=1)
else
    say "without snappy: no headers here (Debian: libsnappy-dev), and apt-get cannot fetch them"
fi

quietly "configuring WiredTiger" cmake -G Ninja -S "$temp/source" -B "$temp/build" -Wno-dev \
    -DCMAKE_BUILD_TYPE=Release -DENABLE_STATIC=1 -DENABLE_SHARED=0 -DWITH_PIC=1 -DENABLE_STRICT=0 \
    -DENABLE_CPPSUITE=0 -DENABLE_MODEL=0 -DENABLE_PYTHON=1 -DPython3_EXECUTABLE="$temp/tree/bin/python" \
    "${options[@]}"
quietly "building WiredTiger" nice ninja -C "$temp/build" lang/python/all

site=$("$temp/tree/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
package=$site/wiredtiger
mkdir -- "$package"
cp -- "$temp/build/lang/python/wiredtiger/"*.py "$temp/build/lang/python/_wiredtiger.so" "$package"
rm -f -- "$package/init.py"
strip --strip-unneeded "$package/_wiredtiger.so" 2>/dev/null || true
unset PYTHONPATH

# One that does not import any more, for instance because its Python is gone, makes room.
if [[ -e $place ]] && ! imports "$place/bin/python"; then
    mv -T -- "$place" "$temp/broken"
fi
# A directory that is not empty is never replaced by this: the first of two wins, the other's copy goes away.
mv -T -- "$temp/tree" "$place" 2>/dev/null || [[ -d $place ]] || die "cannot move WiredTiger to $place"
imports "$place/bin/python" || {
    "$place/bin/python" -c 'import wiredtiger' >&2 || true
    mv -T -- "$place" "$temp/broken"
    cannot "what was built cannot be imported"
}
say "WiredTiger $VERSION is in place"
finish
