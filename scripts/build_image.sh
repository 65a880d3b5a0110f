#!/bin/sh
# Build the image: scripts/build_image.sh NAME [docker build's options …]
#
# BASE is the base image (default: the Dockerfile's). Where it cannot be pulled, a stand-in that
# debootstrap makes takes its place, and the build says so. ARCH is amd64 or arm64 (default: this
# machine's); DOCKERFILE another one than the project's.
set -eu
cd "$(dirname "$0")/.."
name=$1
shift
base=${BASE:-$(sed -n 's/^ARG BASE=//p' Dockerfile)}
is_there() {
    [ "$(docker image inspect -f '{{.Architecture}}' "$1" 2>/dev/null)" = "$arch" ]
}
arch=${ARCH:-$(docker version -f '{{.Server.Arch}}')}
if ! is_there "$base" && ! docker pull -q --platform "linux/$arch" "$base" >/dev/null 2>&1; then
    stand_in=gpt2-stand-in-base-$arch
    echo "$base cannot be pulled: built on a stand-in, $stand_in" >&2
    is_there "$stand_in" || ARCH=$arch scripts/stand_in_base.sh "$stand_in" >&2
    base=$stand_in
    set -- --network host "$@"
fi
docker build -q --platform "linux/$arch" --build-arg "BASE=$base" -t "$name" \
    -f "${DOCKERFILE:-Dockerfile}" "$@" .
