#!/bin/sh
# Make a stand-in for the base image, if no image registry is available: Debian and its Python.
#
#   scripts/stand_in_base.sh [NAME]       default gpt2-stand-in-base-ARCH
#
# ARCH is amd64 or arm64 (default: this machine's). Another architecture needs QEMU (Debian's
# qemu-user-static), which is registered with the kernel.
#
# Needs root, debootstrap and a Docker daemon. This machine's certificates are copied, because the
# build may need them to reach a package registry.
set -eu
suite=${SUITE:-bookworm}
own=$(dpkg --print-architecture)
arch=${ARCH:-$own}
name=${1:-gpt2-stand-in-base-$arch}
binfmt=/proc/sys/fs/binfmt_misc
if [ "$arch" = arm64 ] && [ "$own" != arm64 ]; then
    [ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
    [ -e $binfmt/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >$binfmt/register
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

debootstrap --arch="$arch" --variant=minbase --include=python3,python3-pip,ca-certificates \
    "$suite" "$folder/root" >&2
cp /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/"
# Caches and logs are useless in an image, and contain times, which change the layer.
rm -rf "$folder"/root/var/cache/apt/* "$folder"/root/var/lib/apt/lists/* "$folder"/root/var/log/*
tar -C "$folder/root" -cf "$folder/root.tar" .
rm -rf "$folder/root"
# Not `docker import`, which cannot set another architecture.
cat >"$folder/Dockerfile" <<'END'
FROM scratch
ADD root.tar /
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
CMD ["python3"]
END
docker build -q --platform "linux/$arch" -t "$name" "$folder" >/dev/null
echo "$name"
