#!/bin/sh
# Build the image: scripts/build_image.sh NAME [OPTIONS of docker build …]
#
# BASE        base image (default: that of the Dockerfile). If it cannot be pulled, a stand-in made
#             with debootstrap is used, and a message says so.
# ARCH        amd64 or arm64 (default: this machine's)
# DOCKERFILE  default: Dockerfile
set -eu
cd "$(dirname "$0")/.."
name=$1
shift
base=${BASE:-$(sed -n 's/^ARG BASE=//p' Dockerfile)}
has_image() {
    [ "$(docker image inspect -f '{{.Architecture}}' "$1" 2>/dev/null)" = "$arch" ]
}
arch=${ARCH:-$(docker version -f '{{.Server.Arch}}')}
if ! has_image "$base" && ! docker pull -q --platform "linux/$arch" "$base" >/dev/null 2>&1; then
    stand_in=gpt2-stand-in-base-$arch
    echo "cannot pull $base: using the stand-in $stand_in" >&2
    has_image "$stand_in" || ARCH=$arch scripts/stand_in_base.sh "$stand_in" >&2
    base=$stand_in
    set -- --network host "$@"
fi
docker build -q --platform "linux/$arch" --build-arg "BASE=$base" -t "$name" \
    -f "${DOCKERFILE:-Dockerfile}" "$@" .
