#!/usr/bin/env bash
# The checks that every change has to pass, on a developer's machine and on a server alike.
#
# usage: ci/pipeline.sh [STAGE ...]   (default: the stages below, in order; also: "sanitizers")
set -euo pipefail
cd "$(dirname "$0")/.."
build=${CARGO_TARGET_DIR:-$PWD/target}

stages=(packages format clippy docs coverage fuzz test other-kernel debug-kernel)

# Installs the host packages that builds and tests need. As an ordinary user, only lists them.
run_packages() {
    local wanted=(gcc g++ libc6-dev mmdebstrap bubblewrap gpgv) missing=()
    [ "$(id -u)" = 0 ] || wanted+=(uidmap)
    local package
    for package in "${wanted[@]}"; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null |
            grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "missing packages; run: sudo apt-get install --yes ${missing[*]}" >&2
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install --yes --no-install-recommends "${missing[@]}" ||
        { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; }
}

# The kernel module is not a package, so it is formatted separately. The options for the style of
# imports are unstable and need a nightly rustfmt; without one this check is left out, which a
# message reports.
run_format() {
    local imports=(--config 'imports_granularity=Crate,group_imports=StdExternalCrate')
    local module=(--edition 2021 --check guest-driver/module/main.rs)
    cargo fmt --all --check && rustfmt "${module[@]}" || return
    if ! cargo +nightly fmt --version >/dev/null 2>&1; then
        echo "import style not checked: no nightly rustfmt" >&2
        return
    fi
    cargo +nightly fmt --all --check -- "${imports[@]}" &&
        rustfmt +nightly "${imports[@]}" "${module[@]}"
}

run_clippy() { cargo clippy --workspace --all-targets -- --deny warnings; }

run_docs() { RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps; }

# cargo_tool NAME VERSION [ARGUMENT ...]: adds a cargo command to PATH, installed once per version.
cargo_tool() {
    local root=${XDG_CACHE_HOME:-$HOME/.cache}/vdma/tools/$1-$2
    [ -x "$root/bin/$1" ] || cargo install --locked --root "$root" "$1" --version "$2" "${@:3}" ||
        return
    PATH=$root/bin:$PATH
}

# Line coverage of device and protocol by their tests, backend processes included. Their sandbox is
# off because it would prevent them from writing their profiles.
run_coverage() {
    cargo_tool cargo-tarpaulin 0.37.5 --no-default-features || return
    local output=$build/coverage
    mkdir -p "$output"
    VDMA_TEST_SANDBOX=off LLVM_PROFILE_FILE=$output/build.profraw \
        cargo tarpaulin --locked --engine llvm --target-dir "$output" --skip-clean \
        --packages vdma-protocol --packages vhost-device-dma --lib --bins --tests \
        --include-files 'protocol/src/*' --include-files 'device/src/*' \
        --timeout 300 --out Stdout --fail-under 90
}

# Succeeds if there is a nightly tool chain; otherwise marks the stage as skipped.
nightly() {
    cargo +nightly --version 2>/dev/null && return
    skipped="no nightly tool chain; run: rustup toolchain install nightly --profile minimal"
    return 1
}

# Runs each fuzz target for FUZZ_SECONDS (60) on the stored corpus, which is not modified.
run_fuzz() {
    nightly || return 0
    cargo_tool cargo-fuzz 0.13.2 || return
    local corpus target leaks
    corpus=$(mktemp -d) || return
    for target in ring messages parsers; do
        # The server of this target keeps running; a thread that is just starting looks like a leak.
        leaks=1 && [ "$target" != messages ] || leaks=0
        mkdir "$corpus/$target" &&
            ASAN_OPTIONS=detect_leaks=$leaks \
                cargo +nightly fuzz run --fuzz-dir device/fuzz --target-dir "$build/fuzz" "$target" \
                "$corpus/$target" "device/fuzz/corpus/$target" -- \
                -detect_leaks=$leaks -max_total_time="${FUZZ_SECONDS:-60}" -print_final_stats=1 ||
            return
    done
    rm -r "$corpus"
}

# The tests of device and protocol with the address sanitizer, backend processes included. Their
# sandbox is off because the sanitizer needs further mappings.
run_sanitizers() {
    nightly || return 0
    VDMA_TEST_SANDBOX=off RUSTFLAGS=-Zsanitizer=address \
        cargo +nightly test --locked --target-dir "$build/sanitizers" \
        --target "$(rustc --version --verbose | sed -n 's/^host: //p')" \
        --package vdma-protocol --package vhost-device-dma --lib --bins --tests
}

# All unit tests (the check of the documents among them), suites and scenarios. VM_TEST_ARGUMENTS is
# for instance "--partition 1/2 --junit junit.xml".
# shellcheck disable=SC2086 # split on purpose
run_test() { cargo vm test ${VM_TEST_ARGUMENTS:-}; }

# The suites on the other kernel series that the module supports.
run_other-kernel() { cargo vm test --kernel "${OTHER_KERNEL:-7.2}" --only suites; }

# Suites, hotplug and suspend on the kernel with KASAN, lockdep and kmemleak. Unless the cache has
# it, this kernel is built first, in about ten minutes on two processors. Any complaint of that
# kernel fails the stage. DEBUG_TEST_ARGUMENTS is like VM_TEST_ARGUMENTS.
# shellcheck disable=SC2086 # split on purpose
run_debug-kernel() {
    cargo vm test --kernel debug --only suites ${DEBUG_TEST_ARGUMENTS:-} &&
        cargo vm test --kernel debug --only scenarios hotplug:: &&
        cargo vm test --kernel debug --only scenarios sleep::
}

[ $# -eq 0 ] || stages=("$@")
summary=() skips=()
for stage in "${stages[@]}"; do
    case $stage in
        packages | format | clippy | docs | coverage | fuzz | sanitizers | test | other-kernel | debug-kernel) ;;
        *) echo "ci/pipeline.sh: no stage $stage" >&2; exit 2 ;;
    esac
    echo "== $stage"
    begin=$SECONDS
    skipped=
    if ! "run_$stage"; then
        echo "== $stage FAILED after $((SECONDS - begin)) s" >&2
        exit 1
    fi
    if [ -n "$skipped" ]; then
        echo "== $stage SKIPPED: $skipped" >&2
        skips+=("$stage ($skipped)")
    else
        summary+=("$stage $((SECONDS - begin)) s")
    fi
done
printf '== passed:'
printf ' %s;' "${summary[@]}"
printf '\n'
[ ${#skips[@]} -eq 0 ] || printf '== SKIPPED: %s\n' "${skips[@]}"
