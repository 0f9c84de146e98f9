#!/usr/bin/env bash
# Benchmarks on one machine: backup, restore, mount, maps, memory and mongod's page cache, each beside what the
# machine itself can do. Prints a table; see usage() below.
set -euo pipefail

usage() {
    cat >&2 <<'USAGE'
usage: benches/local.sh [--small] [--json FILE] [--data DIR] [--work DIR] [--only PART,…] [--runs N]

  --small      a dbPath of 200 MB instead of 2 GB, one run of each, small maps: for CI
  --json FILE  write the rows there, too
  --data DIR   keeps the dbPath, so that it is made once (default: target/bench-data)
  --work DIR   repositories, copies and the mount point (default: DIR of --data, /work)
  --only LIST  of backup, restore, mount, maps, memory, cache
  --runs N     runs of each, of which the best counts (default: 3)

Needs root, for the mount and to empty the page cache, and 8 GB of disk (1 GB with --small).
USAGE
}

die() {
    printf 'local.sh: %s\n' "$*" >&2
    exit 1
}

command="benches/local.sh $*"
small=no json='' data='' work='' runs='' only=''
while (($# > 0)); do
    case $1 in
        --small) small=yes ;;
        --json | --data | --work | --only | --runs)
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
[[ $EUID == 0 ]] || die "run it as root: it mounts, and empties the page cache"
command -v fincore >/dev/null || die "fincore is missing: install util-linux (Debian: util-linux-extra)"

json=${json:+$(realpath -m -- "$json")}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
target=${CARGO_TARGET_DIR:-target}
data=$(realpath -m -- "${data:-$target/bench-data}")
megabytes=2900
if [[ $small == yes ]]; then
    megabytes=290 data=$data/small
fi
work=$(realpath -m -- "${work:-$data/work}")

clean() {
    if mountpoint -q -- "$work/mnt" 2>/dev/null; then
        umount -- "$work/mnt" || umount -l -- "$work/mnt"
    fi
    rm -rf -- "${work:?}" /dev/shm/pbm-fs-bench
}
trap clean EXIT
trap 'exit 130' INT TERM

# CI takes the profile of the tests (PBMFS_BENCH_PROFILE=dev), so that nothing is built twice; its figures only show
# that the benchmark runs.
profile=${PBMFS_BENCH_PROFILE:-release}
cargo build --profile "$profile" --quiet -p pbm-fs -p pbmfs-benches
bin=$target/$profile
[[ $profile != dev ]] || bin=$target/debug
"$bin/bench-data" --dir "$data" --megabytes "$megabytes"

clean
args=(--dbpath "$data/dbpath" --work "$work" --pbm-fs "$bin/pbm-fs" --command "$command")
[[ $small == no ]] || args+=(--small --runs "${runs:-1}")
[[ $small == yes ]] || args+=(--runs "${runs:-3}")
[[ -z $only ]] || args+=(--only "$only")
[[ -z $json ]] || args+=(--json "$json")
"$bin/bench-local" "${args[@]}"
