# Sourced. bindgen, which makes the Rust side of RocksDB, loads libclang while it is compiled: this finds the system's,
# or points at the one that setup.sh fetched. Fails where there is neither.

# What the loader of the crate clang-sys would find by itself.
system_libclang() {
    local dir file
    for dir in "${LIBCLANG_PATH:-/nonexistent}" /usr/lib/llvm-*/lib /usr/lib /usr/lib64 /usr/lib/*-linux-gnu \
        /usr/local/lib /usr/local/lib64 /usr/local/llvm*/lib; do
        for file in "$dir"/libclang.so* "$dir"/libclang-[0-9]*.so*; do
            [[ ! -e $file ]] || return 0
        done
    done
    return 1
}

# What setup.sh unpacks a wheel into.
libclang_cache() {
    printf '%s\n' "${PBMFS_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pbm-fs-tools}/libclang-18.1.1"
}

use_libclang() {
    system_libclang && return 0
    local cached
    cached=$(libclang_cache)
    [[ -e $cached/libclang.so ]] || return 1
    export LIBCLANG_PATH=$cached
    # The wheel is the library alone, without the headers of a compiler; gcc's will do.
    BINDGEN_EXTRA_CLANG_ARGS="-I$(gcc -print-file-name=include)"
    export BINDGEN_EXTRA_CLANG_ARGS
}
