#!/usr/bin/env bash
# Compiles RocksDB once a machine and prints the directory of librocksdb.a: the last line on stdout. Everything else
# goes to stderr. scripts/env.sh hands the directory to cargo.
#
# Why: the crate compiles 343 C++ files, and cargo does that again for every profile and every target directory. Here
# they are compiled from the very version that Cargo.lock names, so library and bindings belong together.
set -euo pipefail

# Raise it when the way of building changes, so that older libraries are not used.
LAYOUT=1

usage() {
    cat >&2 <<'USAGE'
usage: get-rocksdb.sh [--key]

Looks for the library of the version in Cargo.lock in
  ${PBMFS_TOOLS_DIR:-${XDG_CACHE_HOME:-~/.cache}/pbm-fs-tools}/rocksdb-<version>-<key>
and compiles it into that place if it is not there: about 16 minutes on two cores, 400 MB of disk meanwhile.

  --key  only print the directory, there or not
USAGE
}

say() { printf 'get-rocksdb: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

only_key=no
case ${1:-} in
    '') ;;
    --key) only_key=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage
        exit 2
        ;;
esac
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

version=$(awk '$1 == "name" { hit = $3 == "\"librocksdb-sys\"" } hit && $1 == "version" { gsub(/"/, "", $3); print $3; exit }' Cargo.lock)
[[ -n $version ]] || die "Cargo.lock names no librocksdb-sys"

# The library is one for all profiles, so it is compiled in one way, whatever the environment says. SSE 4.2 has the
# instruction for CRC32C, and every x86-64 since 2011 has it; mongod itself asks for more.
flags=''
[[ $(uname -m) != x86_64 ]] || flags='-msse4.2'
compiler=${CXX:-c++}
command -v "$compiler" >/dev/null || die "the C++ compiler '$compiler' is missing: install it (Debian: g++)"
made_with="$LAYOUT $("$compiler" -dumpmachine) $("$compiler" -dumpfullversion) -O2 $flags"
key=$(sha256sum <<<"$made_with")
tools=${PBMFS_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?set PBMFS_TOOLS_DIR or HOME}/.cache}/pbm-fs-tools}
place=$tools/rocksdb-$version-${key:0:8}

finish() {
    printf '%s\n' "$place"
    exit 0
}
[[ $only_key == no ]] || finish
[[ ! -f $place/librocksdb.a ]] || finish
mkdir -p -- "$tools" || die "cannot make the directory $tools"

. scripts/libclang.sh
use_libclang || die "libclang is missing: run ./scripts/setup.sh build"

# With flock the second of two waits for the first and finds its work done. Without it both compile, which costs time
# and nothing else: the rename below is what makes it safe.
if command -v flock >/dev/null; then
    exec 9>"$tools/.rocksdb.lock"
    flock -n 9 || {
        say "somebody else is compiling it: waiting"
        flock 9
    }
    [[ ! -f $place/librocksdb.a ]] || finish
fi

# Left by one that was killed; whoever holds the lock is alone here.
! command -v flock >/dev/null || rm -rf -- "$tools"/.rocksdb-??????
temp=$(mktemp -d -- "$tools/.rocksdb-XXXXXX")
building='' pause=''
cleanup() {
    [[ -z $building ]] || kill -- "-$building" 2>/dev/null || true
    [[ -z $pause ]] || kill "$pause" 2>/dev/null || true
    rm -rf -- "$temp"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

progress() { printf '%s files compiled after %s min' "$(find "$temp/target" -path '*librocksdb-sys*' -name '*.o' | wc -l)" $((SECONDS / 60)); }

say "COMPILING ROCKSDB $version INTO $place"
say "this is done once on this machine and takes about 16 minutes on two cores"
mkdir -- "$temp/target"
# A process group of its own, so that an interrupt ends the compilers, too.
set -m
(
    status=0
    env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET -u ROCKSDB_LIB_DIR -u ROCKSDB_COMPILE \
        CXXFLAGS="$flags" CARGO_TARGET_DIR="$temp/target" \
        cargo build --quiet --locked --release -p librocksdb-sys >"$temp/log" 2>&1 || status=$?
    echo "$status" >"$temp/status"
) 9>&- &
building=$!
set +m
while kill -0 "$building" 2>/dev/null; do
    sleep 30 9>&- &
    pause=$!
    # Ends at once when cargo does: `wait -n` takes the first of the two.
    wait -n "$building" "$pause" || true
    kill "$pause" 2>/dev/null || say "$(progress)"
done
building=''
if [[ $(cat "$temp/status" 2>/dev/null) != 0 ]]; then
    tail -n 30 "$temp/log" >&2
    die "RocksDB could not be compiled: the end of the log stands above"
fi
made=$(find "$temp/target/release/build" -path '*librocksdb-sys*/out/librocksdb.a' | head -n 1)
[[ -n $made ]] || die "the build left no librocksdb.a"
mkdir -- "$temp/tree"
mv -- "$made" "$temp/tree/"
printf '%s\n' "$made_with" >"$temp/tree/made-with"

# A directory that is not empty is never replaced by this: the first of two wins, the other's library goes away.
mv -T -- "$temp/tree" "$place" 2>/dev/null || [[ -f $place/librocksdb.a ]] || die "cannot move it to $place"
say "RocksDB is in place after $((SECONDS / 60)) min $((SECONDS % 60)) s"
finish
