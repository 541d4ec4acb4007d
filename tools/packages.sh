#!/bin/sh
# packages.sh NAME...: installs Debian or Ubuntu packages; fails where this user may not.
set -eu
command -v apt-get >/dev/null
as_root=
[ "$(id -u)" = 0 ] || { as_root='sudo -n' && sudo -n true; }
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq"
apt="$apt -o DPkg::Lock::Timeout=300"  # another may be at work, as on a machine just started
echo "apt-get install $* (about a minute)"
$apt update || true
$apt install -y --no-install-recommends "$@" >/dev/null
