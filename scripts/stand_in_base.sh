#!/bin/sh
# A stand-in for the base image where no image registry can be reached: Debian with its own Python.
#
#   scripts/stand_in_base.sh [NAME]       default gpt2-stand-in-base
#
# Needs root, debootstrap and a running Docker. Certificates and pip's settings of this machine go
# along, as the image's build may need them to reach a package registry.
set -eu
name=${1:-gpt2-stand-in-base}
suite=${SUITE:-bookworm}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates "$suite" "$folder" >&2
cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/"
# What pip and apt have left for themselves says when it was made, and is of no use in an image.
rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/* "$folder"/var/log/*
tar -C "$folder" -c . | docker import \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - "$name" >/dev/null
echo "$name"
