# What cargo needs in its environment so that RocksDB is not compiled once more for each profile and target directory.
# The scripts source it; so may anybody who builds by hand, in bash:
#
#     . scripts/env.sh
#
# Without it cargo compiles RocksDB itself, which takes about 16 minutes on two cores.
pbmfs_scripts=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$pbmfs_scripts/libclang.sh"
use_libclang || echo "env: libclang is missing: run $pbmfs_scripts/setup.sh build" >&2
if [[ -z ${ROCKSDB_LIB_DIR:-} ]]; then
    # A plain "if" because this may be sourced by a shell that goes on after failures.
    if ROCKSDB_LIB_DIR=$("$pbmfs_scripts/get-rocksdb.sh" | tail -n 1) && [[ -n $ROCKSDB_LIB_DIR ]]; then
        export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
    else
        unset ROCKSDB_LIB_DIR
        echo "env: there is no prebuilt RocksDB" >&2
        return 1
    fi
fi
