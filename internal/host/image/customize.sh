#!/bin/sh
# Turns the plain Debian in the directory $1 into the base image. Runs as a hook of
# mmdebstrap, with the files to lay over it in $WRENN_OVERLAY.
set -eu
root=$1

# What mmdebstrap brought from the host or left for later runs of itself.
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
rm -f "$root"/etc/hostname "$root"/etc/resolv.conf

cp -a "$WRENN_OVERLAY/." "$root/"

# The guest daemon writes these when a sandbox starts.
: >"$root/etc/hostname"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"

chroot "$root" update-ca-certificates

# The uids are part of the platform's promise: files in volumes and snapshots keep them.
chroot "$root" useradd --create-home --uid 1000 --user-group --groups sudo --shell /bin/bash wrenn-user
chroot "$root" useradd --create-home --uid 1001 --user-group --groups sudo --shell /bin/bash user

# Debian marks its Python as externally managed, so that pip does not break the packages
# of a machine that has to last. A sandbox does not have to last, and `pip install` is
# among the first things that people and agents type into it.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED

rm -rf "$root"/var/cache/debconf/*-old "$root"/var/cache/apt/*.bin "$root"/var/lib/dpkg/*-old
rm -rf "$root"/etc/*- "$root"/root/.cache "$root"/var/log/bootstrap.log
