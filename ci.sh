#!/usr/bin/env bash
# Everything CI checks. `./ci.sh` runs all parts; `./ci.sh setup|lint|unit|e2e|fuzz` runs one.
#
#   setup   installs what the tests need (Debian or Ubuntu, as root), otherwise names what is missing
#   lint    formatting, clippy, documentation
#   unit    tests that need nothing but a compiler
#   e2e     real SQLite processes on real mounts; needs /dev/fuse
#   fuzz    each decoder on bytes that libFuzzer makes up, FUZZ_SECONDS (20) each; needs cargo-fuzz and a
#           nightly compiler, so it is not part of all: the unit tests run the same checks on random bytes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'ci.sh: %s\n' "$*" >&2; exit 1; }

# Command -> Debian package that brings it.
TOOLS=(sqlite3:sqlite3 fusermount3:fuse3 cc:build-essential)

setup() {
    say setup
    local missing=() tool
    for tool in "${TOOLS[@]}"; do
        command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
    done
    if ((${#missing[@]})); then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            export DEBIAN_FRONTEND=noninteractive
            apt-get update -qq
            apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
        else
            fail "missing: ${missing[*]}. Install them (Debian: sudo apt-get install ${missing[*]})."
        fi
    fi
    command -v cargo >/dev/null || fail "missing: cargo. Install Rust 1.95 or newer from your distribution or https://rustup.rs."
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy >/dev/null || fail "missing: clippy (rustup component add clippy)"
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt >/dev/null || fail "missing: rustfmt (rustup component add rustfmt)"
    printf '%s; sqlite3 %s; %s cores\n' "$(cargo --version)" "$(sqlite3 --version | cut -d' ' -f1)" "$(nproc)"
}

lint() {
    say lint
    cargo fmt --check
    cargo clippy --quiet --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps
}

unit() {
    say unit
    cargo test --quiet --lib --bins --test tidy
    cargo test --quiet --doc
}

e2e() {
    say e2e
    [ -c /dev/fuse ] || fail "no /dev/fuse here: the end-to-end tests need it (modprobe fuse; in Docker: --device /dev/fuse --cap-add SYS_ADMIN)"
    # All of it takes minutes; a test that hangs must not take CI's whole time, and its name is the last one printed.
    cargo test --no-run --test '*'
    timeout --kill-after=30s 25m cargo test --test '*' || fail "the end-to-end tests failed, or took more than 25 minutes"
}

fuzz() {
    say fuzz
    local missing=() target seeds
    cargo fuzz --version >/dev/null 2>&1 || missing+=("cargo-fuzz (cargo install cargo-fuzz)")
    rustc +nightly --version >/dev/null 2>&1 || missing+=("a nightly compiler (rustup toolchain install nightly)")
    if ((${#missing[@]})); then
        printf 'ci.sh: not fuzzed; missing: %s\n' "${missing[@]}" >&2
        exit 1
    fi
    cargo +nightly fuzz build
    for target in $(cargo +nightly fuzz list); do
        say "fuzz $target"
        seeds=()
        [ "$target" != ltx_decode ] || seeds=(tests/data/ltx)
        mkdir -p "fuzz/corpus/$target"
        cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "${seeds[@]}" -- \
            -max_total_time="${FUZZ_SECONDS:-20}" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
    done
}

case "${1:-all}" in
    all) setup; lint; unit; e2e; say "all passed" ;;
    setup | lint | unit | e2e | fuzz) "$1" ;;
    -h | --help | help) sed -n '2,9s/^# \{0,1\}//p' "$0" ;;
    *) echo "ci.sh: unknown part '$1' (all, setup, lint, unit, e2e, fuzz)" >&2; exit 2 ;;
esac
