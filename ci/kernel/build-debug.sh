#!/bin/sh
# Builds the debug kernel: image, and a tree that Rust modules can be built against.
#
# With gcc, KASAN switches Rust off, so it is built with clang.
#
# usage: build-debug.sh SOURCE_TARBALL FRAGMENT TREE
set -eu
source=$1 fragment=$2 tree=$3

top=$(basename "$source" .tar.xz)
tar --extract --file "$source" --directory "$tree" --strip-components 1 --anchored \
    --exclude="$top/Documentation/*/*" \
    --exclude="$top/tools/testing/*" \
    --exclude="$top/tools/perf/*"

cd "$tree"
make LLVM=-19 tinyconfig
scripts/kconfig/merge_config.sh -m .config "$fragment"
make LLVM=-19 olddefconfig
missing=$(grep -E '^(CONFIG_|# CONFIG_)' "$fragment" | while read -r line; do
    case $line in
        # An option that does not exist, or is hidden, is as good as not set.
        '# '*) name=${line#'# '}; grep -q "^${name%% *}=" .config && echo "$line" ;;
        *) grep -qxF "$line" .config || echo "$line" ;;
    esac
done)
if [ -n "$missing" ]; then
    echo "build-debug.sh: these lines of the fragment had no effect:" >&2
    echo "$missing" >&2
    exit 1
fi
make -j"$(nproc)" LLVM=-19 bzImage modules
make -j"$(nproc)" LLVM=-19 modules_prepare
test -e rust/libkernel.rmeta
grep -q rust_build_error Module.symvers || grep -q _RN Module.symvers
# Objects of the image: modules are built without them.
find . -name '*.o' ! -path './scripts/*' ! -path './tools/*' ! -path './rust/*' -delete
rm -f vmlinux.unstripped .tmp_vmlinux*
