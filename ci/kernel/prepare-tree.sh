#!/bin/sh
# Makes a kernel tree that out-of-tree Rust modules can be built against.
#
# Debian's headers packages carry no Rust metadata, so the tree is prepared from the source package
# of the same version with the image's own configuration; the result matches the image symbol for
# symbol.
#
# usage: prepare-tree.sh SOURCE_TARBALL CONFIG MODULE_SYMVERS LOCALVERSION TREE
set -eu
source=$1 config=$2 symvers=$3 localversion=$4 tree=$5

# Left out: what neither Kconfig nor modules_prepare reads, two thirds of the unpacked size.
top=$(basename "$source" .tar.xz)
tar --extract --file "$source" --directory "$tree" --strip-components 1 --anchored \
    --exclude="$top/Documentation/*/*" \
    --exclude="$top/tools/testing/*" \
    --exclude="$top/tools/perf/*" \
    --exclude="$top/drivers/*.c" \
    --exclude="$top/drivers/gpu/*.h" \
    --exclude="$top/drivers/net/*.h" \
    --exclude="$top/sound/*.c" \
    --exclude="$top/fs/*.c" \
    --exclude="$top/net/*.c"

cd "$tree"
cp "$config" .config
make CC=gcc-14 HOSTCC=gcc-14 olddefconfig
# An option that the tools here cannot provide changes structures and symbols: better no tree at all
# than one that does not fit the image. Signing and the compiler's name change neither.
options() {
    grep '^CONFIG_' "$1" | grep -vE '^CONFIG_(CC_VERSION_TEXT|BUILD_SALT|MODULE_SIG|OPENSSL|SYSTEM_TRUST)'
}
options "$config" > .config.image
options .config > .config.here
if ! diff .config.image .config.here; then
    echo "prepare-tree.sh: the image's configuration needs tools that are missing here" >&2
    exit 1
fi
make -j"$(nproc)" CC=gcc-14 HOSTCC=gcc-14 LOCALVERSION="$localversion" modules_prepare
cp "$symvers" Module.symvers
test -e rust/libkernel.rmeta
