#!/bin/sh
# A stand-in for the base image where no image registry can be reached: Debian with its own Python.
#
#   scripts/stand_in_base.sh [NAME]       default gpt2-stand-in-base-ARCH
#
# ARCH, amd64 or arm64, is the machine's own unless said otherwise; another one takes QEMU (Debian's
# qemu-user-static), which the kernel is told of if it has not been.
#
# Needs root, debootstrap and a running Docker. Certificates and pip's settings of this machine go
# along, as the image's build may need them to reach a package registry.
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
# What pip and apt have left for themselves says when it was made, and is of no use in an image.
rm -rf "$folder"/root/var/cache/apt/* "$folder"/root/var/lib/apt/lists/* "$folder"/root/var/log/*
tar -C "$folder/root" -cf "$folder/root.tar" .
rm -rf "$folder/root"
# Not `docker import`, which knows no other machine's architecture.
cat >"$folder/Dockerfile" <<'END'
FROM scratch
ADD root.tar /
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
CMD ["python3"]
END
docker build -q --platform "linux/$arch" -t "$name" "$folder" >/dev/null
echo "$name"
