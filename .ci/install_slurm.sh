#!/usr/bin/env bash
# Installs what the tests on a real SLURM and in a real browser need (Debian, Ubuntu), and starts no service: the tests
# start daemons of their own. Does nothing where all packages are there.
set -euo pipefail

packages=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server chromium)
missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "install_slurm: nothing to do, all there: ${packages[*]}"
    exit 0
fi
echo "install_slurm: installing ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    echo "install_slurm: no apt-get here; install ${missing[*]} (or what your system calls them) by hand" >&2
    exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "install_slurm: neither root nor sudo here; let an administrator install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi

# Debian starts a service as soon as its package is in, unless this file forbids it (exit code 101).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends "${missing[@]}"
