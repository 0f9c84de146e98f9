#!/usr/bin/env bash
# Benchmarks of the local index: look-ups, memory, disk, and how long it takes to build it, beside an index in memory.
# Prints a table; see usage() below.
set -euo pipefail

usage() {
    cat >&2 <<'USAGE'
usage: benches/index.sh [--small] [--json FILE] [--work DIR] [--blocks N,…] [--memory BYTES]

  --small       20 thousand blocks instead of 1 and 20 million: for CI
  --json FILE   write the rows there, too
  --work DIR    repositories and indexes (default: target/bench-index); emptied
  --blocks N,…  blocks of the repositories
  --memory B    memory of the index in bytes (default: that of pbm-fs)

Needs 3 GB of disk for 20 million blocks.
USAGE
}

die() {
    printf 'index.sh: %s\n' "$*" >&2
    exit 1
}

command="benches/index.sh $*"
small=no json='' work='' blocks='' memory=''
while (($# > 0)); do
    case $1 in
        --small) small=yes ;;
        --json | --work | --blocks | --memory)
            (($# > 1)) || die "$1 needs a value"
            declare "${1#--}=$2"
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
    shift
done

json=${json:+$(realpath -m -- "$json")}
work=${work:+$(realpath -m -- "$work")}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
target=${CARGO_TARGET_DIR:-target}
work=$(realpath -m -- "${work:-$target/bench-index}")/index
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT TERM
rm -rf -- "$work"

# CI takes the profile of the tests (PBMFS_BENCH_PROFILE=dev), so that nothing is built twice; its figures only show
# that the benchmark runs.
profile=${PBMFS_BENCH_PROFILE:-release}
cargo build --profile "$profile" --quiet -p pbmfs-benches --bin bench-index
bin=$target/$profile
[[ $profile != dev ]] || bin=$target/debug

args=(--work "$work" --command "$command")
[[ $small == no ]] || args+=(--lookups 20000 --blocks "${blocks:-20000}")
[[ $small == yes || -z $blocks ]] || args+=(--blocks "$blocks")
[[ -z $memory ]] || args+=(--memory "$memory")
[[ -z $json ]] || args+=(--json "$json")
"$bin/bench-index" "${args[@]}"
