#!/usr/bin/env bash
# Sees to what the build and the tests need: `setup.sh build` for building alone, `setup.sh test` for the tests too.
# Installs what it can and says in one line what it cannot.
set -euo pipefail

what="${1:-build}"
tools="${PBMFS_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pbm-fs-tools}"

# The version that reads deny.toml as it is written.
deny_version=0.20.2

fail() {
    echo "setup: $*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

have cargo || fail "cargo is missing: install Rust 1.95 or newer with rustup"
have cc || have gcc || fail "a C compiler is missing: install gcc (apt-get install build-essential)"
have git || fail "git is missing: apt-get install git"
have python3 || fail "python3 is missing: apt-get install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || fail "pip for python3 is missing: apt-get install python3-pip"

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
