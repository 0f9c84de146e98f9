#!/usr/bin/env bash
# Sees to what the build and the tests need: `setup.sh build` for building alone, `setup.sh test` for the tests too.
# Installs what it can and says in one line what it cannot.
set -euo pipefail

cd "$(dirname "$0")/.."
what="${1:-build}"
tools="${PBMFS_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pbm-fs-tools}"

# The version that reads deny.toml as it is written.
deny_version=0.20.2
# Of the wheels of libclang 18.1.1 for glibc on x86-64 and aarch64.
libclang_sums="--hash=sha256:c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b \
    --hash=sha256:54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592"

fail() {
    echo "setup: $*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

have cargo || fail "cargo is missing: install Rust 1.95 or newer with rustup"
have cc || have gcc || fail "a C compiler is missing: install gcc (apt-get install build-essential)"
have c++ || have g++ || fail "a C++ compiler is missing: install g++ (apt-get install build-essential)"
have git || fail "git is missing: apt-get install git"
have python3 || fail "python3 is missing: apt-get install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || fail "pip for python3 is missing: apt-get install python3-pip"

# The Rust side of RocksDB is made from its header by libclang.
. scripts/libclang.sh
if ! use_libclang && [ "$(id -u)" = 0 ] && have apt-get; then
    echo "setup: installing libclang-dev" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get install --yes --no-install-recommends libclang-dev >&2 ||
        { apt-get update && apt-get install --yes --no-install-recommends libclang-dev; } >&2 ||
        echo "setup: apt-get cannot install libclang-dev" >&2
fi
if ! use_libclang; then
    echo "setup: fetching libclang with pip" >&2
    mkdir -p "$tools"
    wheel="$(mktemp -d "$tools/.libclang-XXXXXX")"
    trap 'rm -rf "$wheel"' EXIT
    printf '%s\n' "libclang==18.1.1 $libclang_sums" >"$wheel/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --dest "$wheel" -r "$wheel/requirements.txt" >&2 ||
        fail "libclang is missing: apt-get install libclang-dev"
    python3 -m zipfile -e "$wheel"/*.whl "$wheel/tree"
    # A directory that is not empty is never replaced by this: of two that fetch at once the first wins.
    mv -T "$wheel"/tree/*.data/platlib/clang/native "$(libclang_cache)" 2>/dev/null || true
    rm -rf "$wheel"
    use_libclang || fail "libclang is missing: apt-get install libclang-dev"
fi
./scripts/get-rocksdb.sh >/dev/null

[ "$what" = test ] || exit 0

mkdir -p "$tools"
if ! cargo nextest --version >/dev/null 2>&1 && [ ! -x "$tools/bin/cargo-nextest" ]; then
    echo "setup: installing cargo-nextest (some minutes, once)" >&2
    cargo install --locked --debug cargo-nextest --root "$tools" >&2 || fail "cargo-nextest cannot be installed"
fi
if [ ! -x "$tools/bin/cargo-deny" ] || ! "$tools/bin/cargo-deny" --version | grep -q " $deny_version\$"; then
    echo "setup: installing cargo-deny $deny_version (some minutes, once)" >&2
    cargo install --locked --debug cargo-deny --version "$deny_version" --root "$tools" \
        --target-dir "$tools/target" >&2 || fail "cargo-deny cannot be installed"
    rm -rf "$tools/target"
fi
