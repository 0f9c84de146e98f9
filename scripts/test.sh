#!/usr/bin/env bash
# All checks and tests. Real mongods, real mounts (needs root and /dev/fuse), real files. Campaigns run in their small
# form; PBMFS_CAMPAIGN=full runs them whole.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/setup.sh test
tools="${PBMFS_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pbm-fs-tools}"
export PATH="$tools/bin:$PATH"
. scripts/env.sh

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

[ "$(id -u)" = 0 ] || { echo "test: the mount tests need root" >&2; exit 1; }
[ -c /dev/fuse ] || { echo "test: /dev/fuse is missing: load the kernel's fuse module" >&2; exit 1; }

step "a mongod for the tests"
PBMFS_MONGOD="$(./scripts/get-mongod.sh | tail -n 1)"
export PBMFS_MONGOD

step "WiredTiger for the tests"
# 3: it cannot be built here, and has said so; the tests that need it pass without it.
./scripts/get-wiredtiger.sh >/dev/null || [ $? = 3 ]

step "form"
cargo fmt --all --check
long="$(git ls-files '*.rs' '*.sh' | xargs wc -l | awk '$2 != "total" && $1 > 600 { print $2 ": " $1 }')"
[ -z "$long" ] || { printf 'files above 600 lines:\n%s\n' "$long" >&2; exit 1; }

step "licences, sources, layers"
cargo deny --all-features check licenses bans sources

step "lints"
cargo clippy --workspace --all-targets -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

step "build"
cargo build --workspace --all-targets

step "tests"
export PBMFS_BIN="${CARGO_TARGET_DIR:-$PWD/target}/debug/pbm-fs"
cargo nextest run --workspace --no-fail-fast
cargo test --workspace --doc --quiet

step "benchmarks, small"
PBMFS_BENCH_PROFILE=dev ./benches/local.sh --small
PBMFS_BENCH_PROFILE=dev ./benches/increments.sh --small
PBMFS_BENCH_PROFILE=dev ./benches/index.sh --small
PBMFS_BENCH_PROFILE=dev ./benches/cut.sh --small

step "done"
