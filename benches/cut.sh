#!/usr/bin/env bash
# What it costs to cut tables along WiredTiger's blocks, in CPU time: the walk over what did not change, and a backup
# beside one in blocks of 64 KiB. Prints a table; see usage() below.
set -euo pipefail

usage() {
    cat >&2 <<'USAGE'
usage: benches/cut.sh [--small] [--json FILE] [--data DIR] [--runs N]

  --small      a dbPath of 200 MB instead of 2 GB, one run of each: for CI
  --json FILE  write the rows there, too
  --data DIR   keeps the dbPath, so that it is made once (default: target/bench-data, which local.sh uses, too)
  --runs N     runs of each backup, of which the best counts (default: 5)

Needs 5 GB of memory (1 GB with --small): the repository is kept there.
USAGE
}

die() {
    printf 'cut.sh: %s\n' "$*" >&2
    exit 1
}

command="benches/cut.sh $*"
small=no json='' data='' runs=''
while (($# > 0)); do
    case $1 in
        --small) small=yes ;;
        --json | --data | --runs)
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
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
target=${CARGO_TARGET_DIR:-target}
data=$(realpath -m -- "${data:-$target/bench-data}")
megabytes=2900
if [[ $small == yes ]]; then
    megabytes=290 data=$data/small
fi

# CI takes the profile of the tests (PBMFS_BENCH_PROFILE=dev), so that nothing is built twice; its figures only show
# that the benchmark runs.
profile=${PBMFS_BENCH_PROFILE:-release}
cargo build --profile "$profile" --quiet -p pbmfs-benches
bin=$target/$profile
[[ $profile != dev ]] || bin=$target/debug
"$bin/bench-data" --dir "$data" --megabytes "$megabytes"

args=(--dbpath "$data/dbpath" --command "$command")
[[ $small == no ]] || args+=(--runs "${runs:-1}")
[[ $small == yes ]] || args+=(--runs "${runs:-5}")
[[ -z $json ]] || args+=(--json "$json")
"$bin/bench-cut" "${args[@]}"
