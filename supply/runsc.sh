#!/bin/sh
# gVisor's runsc to /usr/local/bin, as root: Debian 12's own is of 2022 and too old, Debian 13's does. apt checks the
# signatures of Debian's archive, as for any other package; the package is unpacked, not installed.
set -eu
version='0.0~20240729.0-4*'
[ "$(id -u)" = 0 ] || { echo "runsc.sh: as root" >&2; exit 1; }
[ -x /usr/local/bin/runsc ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
chmod 0755 "$work"
cat >"$work/sources" <<END
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main
END
apt() {
  apt-get -qq -o Dir::Etc::sourcelist="$work/sources" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$work/lists" \
    -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}
apt update
cd "$work"
apt download "runsc=$version"
dpkg-deb -x runsc_*.deb unpacked
install -o root -g root -m 0755 unpacked/usr/bin/runsc /usr/local/bin/runsc
/usr/local/bin/runsc --version | head -n 1
