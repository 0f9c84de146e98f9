#!/usr/bin/env bash
# The main job on a mongod of its own: backup, change, backup, mount, restore, compare. Leaves a repository to play
# with in ./play. Needs root for the mount.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/setup.sh build
. scripts/env.sh
[ "$(id -u)" = 0 ] || { echo "quickstart: mounting needs root" >&2; exit 1; }
[ -c /dev/fuse ] || { echo "quickstart: /dev/fuse is missing: load the kernel's fuse module" >&2; exit 1; }

# The tests' profile: what is built here is not built again there.
echo "building pbm-fs"
cargo build --quiet -p pbm-fs -p pbmfs-tests --bins
mongod="$(./scripts/get-mongod.sh | tail -n 1)"
bin="${CARGO_TARGET_DIR:-$PWD/target}/debug"
exec "$bin/pbmfs-quickstart" --mongod "$mongod" --pbm-fs "$bin/pbm-fs" --play "$PWD/play"
