# Sourced by `deploy/quickstart` and `tests/run`: what a fresh Debian machine lacks, and where builds go.

set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mezite
mkdir -p "$cache"

# Outside the checkout, so that a clean clone pays for RocksDB once.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
# RocksDB and aws-lc have the same flags in every profile (see Cargo.toml): one compilation serves all of them.
export CC=${CC:-ccache cc} CXX=${CXX:-ccache c++}
export CCACHE_DIR=${CCACHE_DIR:-$HOME/.cache/ccache} CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-5G}

# What it takes to build: a C++ compiler for RocksDB, libclang for its bindings.
build_packages=(build-essential ccache clang libclang-dev pkg-config git ca-certificates)

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Installs the Debian packages among the arguments that are missing, and says which. With --without-services, the services that come with
# them are off.
need_packages() {
    local package missing=() services=on
    [[ $1 != --without-services ]] || { services=off; shift; }
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    local as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "these Debian packages are missing: ${missing[*]}; install them as root"
        as_root=(sudo)
    fi
    say "Installing Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get -qq update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
    [[ $services == off && -d /run/systemd/system ]] || return 0
    local unit
    for unit in $(dpkg -L "${missing[@]}" | sed -n 's,^/lib/systemd/system/\([^/]*\.service\)$,\1,p'); do
        "${as_root[@]}" systemctl disable --quiet --now "$unit" || say "$unit could not be switched off"
    done
}

# The Rust toolchain is not installed behind anybody's back.
need_rust() {
    command -v cargo >/dev/null || [[ ! -f $HOME/.cargo/env ]] || . "$HOME/.cargo/env"
    command -v cargo >/dev/null || die "no Rust toolchain: install Rust 1.95 or later with rustup, see https://rustup.rs"
}
