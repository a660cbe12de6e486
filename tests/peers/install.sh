#!/usr/bin/env bash
# Installs the foreign programs that the tests talk to: Debian packages where we may (root and apt-get), dcmqi from
# PyPI in an environment of its own. Fast when everything is there. With CI=true a missing peer is a failure; otherwise
# it is named here and its tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."

DCMQI_VERSION=1.5.7
missing=()

# a program or file that a package brings, and the package
check() { [[ -e $1 ]] || command -v "$1" >/dev/null 2>&1 || PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
check_all() {
    missing=()
    check Orthanc orthanc
    check storescu dcmtk
    check dciodvfy dicom3tools
    check java default-jre-headless
    check /usr/share/java/pixelmed.jar libpixelmed-java
    check strace strace
    check systemd-analyze systemd
}

install_debian() {
    # Installing Orthanc must not start it as a service of this machine.
    local policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
        trap "rm -f '$policy'" EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

check_all
if ((${#missing[@]})) && ((EUID == 0)) && command -v apt-get >/dev/null; then
    install_debian || true
    check_all
fi

if [[ ! -e .peers/dcmqi/.$DCMQI_VERSION ]]; then
    rm -rf .peers/dcmqi
    if .venv/bin/python -m venv .peers/dcmqi \
        && .peers/dcmqi/bin/python -m pip install --quiet --disable-pip-version-check "dcmqi==$DCMQI_VERSION"; then
        touch ".peers/dcmqi/.$DCMQI_VERSION"
    else
        missing+=("dcmqi==$DCMQI_VERSION (PyPI)")
    fi
fi

if ((${#missing[@]})); then
    echo "peers missing: ${missing[*]}" >&2
    echo "install them as root: apt-get install orthanc dcmtk dicom3tools default-jre-headless libpixelmed-java strace systemd" >&2
    [[ ${CI:-} != true ]] || exit 1
fi
