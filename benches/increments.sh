#!/usr/bin/env bash
# What increments cost: bytes stored and read, and time, beside the least possible, 16 MB ranges, and other programs on
# the same copies of a dbPath. Prints a table; see usage() below.
set -euo pipefail

usage() {
    cat >&2 <<'USAGE'
usage: benches/increments.sh [--small] [--json FILE] [--data DIR] [--work DIR] [--only PART,…] [--runs N]
                             [--no-install]

  --small      60 MB of documents instead of 500, small maps, and only such programs as are quick to install: for CI
  --json FILE  write the rows there, too
  --data DIR   keeps the copies of the dbPath, so that they are made once (default: target/bench-increments)
  --work DIR   repositories (default: DIR of --data, /work)
  --only LIST  of mix, chain, time, maps
  --runs N     increments of each size of data of which the fastest counts (default: 5)
  --no-install only with such programs as are there

Installs restic, borg and rustic where it can: the first two with apt, as root; the third with cargo, which takes long,
and not with --small. What is missing is not measured. Needs 10 GB of disk (2 GB with --small).
USAGE
}

die() {
    printf 'increments.sh: %s\n' "$*" >&2
    exit 1
}

command="benches/increments.sh $*"
small=no json='' data='' work='' runs='' only='' install=yes
while (($# > 0)); do
    case $1 in
        --small) small=yes ;;
        --no-install) install=no ;;
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

json=${json:+$(realpath -m -- "$json")}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
target=${CARGO_TARGET_DIR:-target}
data=$(realpath -m -- "${data:-$target/bench-increments}")
megabytes=500
if [[ $small == yes ]]; then
    megabytes=60 data=$data/small
fi
work=$(realpath -m -- "${work:-$data/work}")

# The other programs. Their absence is no failure: the table tells what was measured.
tools=${PBMFS_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pbm-fs-tools}
export PATH=$tools/bin:$PATH
rustic_version=0.11.4

install_with_apt() {
    if command -v "$1" >/dev/null; then
        return
    fi
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        printf 'increments.sh: %s is missing, and only root can install it with apt-get: NOT MEASURED\n' "$1" >&2
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install --yes --no-install-recommends "$2" >&2 ||
        { apt-get update && apt-get install --yes --no-install-recommends "$2"; } >&2 ||
        printf 'increments.sh: apt-get cannot install %s: NOT MEASURED\n' "$2" >&2
}

install_rustic() {
    if command -v rustic >/dev/null; then
        return
    fi
    if [[ $small == yes ]]; then
        printf 'increments.sh: rustic takes long to compile, and --small does not: NOT MEASURED\n' >&2
        return
    fi
    printf 'increments.sh: compiling rustic %s, once, for at most 25 minutes\n' "$rustic_version" >&2
    # Its time is not measured, and it stores the same bytes however it is optimised.
    CARGO_TARGET_DIR=$target/rustic CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=2 timeout 1500 nice -n 15 cargo install rustic-rs --quiet --locked \
        --version "$rustic_version" --no-default-features --root "$tools" >&2 ||
        printf 'increments.sh: rustic did not compile within 25 minutes: NOT MEASURED\n' >&2
    rm -rf -- "${target:?}/rustic"
}

if [[ $install == yes ]]; then
    install_with_apt restic restic
    install_with_apt borg borgbackup
    install_rustic
fi

clean() {
    rm -rf -- "${work:?}" "${data:?}/chain"
}
trap clean EXIT
trap 'exit 130' INT TERM

# As in local.sh.
profile=${PBMFS_BENCH_PROFILE:-release}
cargo build --profile "$profile" --quiet -p pbmfs-benches --bin bench-increments
bin=$target/$profile
[[ $profile != dev ]] || bin=$target/debug

clean
args=(--data "$data" --work "$work" --megabytes "$megabytes" --command "$command")
[[ $small == no ]] || args+=(--small --runs "${runs:-1}")
[[ $small == yes ]] || args+=(--runs "${runs:-5}")
[[ -z $only ]] || args+=(--only "$only")
[[ -z $json ]] || args+=(--json "$json")
"$bin/bench-increments" "${args[@]}"
