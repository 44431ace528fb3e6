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
        '# '*) name=${line#'# '}; name=${name%% *}; wanted=absent ;;
        *) name=${line%%=*}; wanted=$line ;;
    esac
    # An option that does not exist, or that another one hides, is as good as not set.
    found=$(grep "^$name=" .config || echo absent)
    if [ "$found" != "$wanted" ]; then
        echo "$line"
    fi
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
