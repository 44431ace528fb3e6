#!/usr/bin/env bash
# The whole pipeline: what a change has to pass, on a developer's machine and on a server alike.
#
# usage: ci/pipeline.sh [STAGE ...]   (default: all of them, in order)
set -euo pipefail
cd "$(dirname "$0")/.."

stages=(packages format clippy docs test)

# Host packages that building and testing need. As an ordinary user: only say what is missing.
run_packages() {
    local wanted=(gcc libc6-dev mmdebstrap bubblewrap gpgv) missing=()
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

run_format() { cargo fmt --all --check; }

run_clippy() { cargo clippy --workspace --all-targets -- --deny warnings; }

run_docs() { RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps; }

# The README's command. VM_TEST_ARGUMENTS, for instance "--partition 1/2 --junit junit.xml".
# shellcheck disable=SC2086 # several arguments are meant
run_test() { cargo vm test ${VM_TEST_ARGUMENTS:-}; }

[ $# -eq 0 ] || stages=("$@")
summary=()
for stage in "${stages[@]}"; do
    case $stage in
        packages | format | clippy | docs | test) ;;
        *) echo "ci/pipeline.sh: no stage $stage" >&2; exit 2 ;;
    esac
    echo "== $stage"
    begin=$SECONDS
    if ! "run_$stage"; then
        echo "== $stage FAILED after $((SECONDS - begin)) s" >&2
        exit 1
    fi
    summary+=("$stage $((SECONDS - begin)) s")
done
printf '== passed:'
printf ' %s;' "${summary[@]}"
printf '\n'
