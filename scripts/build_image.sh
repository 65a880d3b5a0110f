#!/bin/sh
# Build the image: scripts/build_image.sh NAME [docker build's options …]
#
# BASE is the base image (default: the Dockerfile's). Where it cannot be pulled, a stand-in that
# debootstrap makes takes its place, and the build says so.
set -eu
cd "$(dirname "$0")/.."
name=$1
shift
base=${BASE:-$(sed -n 's/^ARG BASE=//p' Dockerfile)}
if ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull -q "$base" >/dev/null 2>&1; then
    stand_in=gpt2-stand-in-base
    echo "$base cannot be pulled: built on a stand-in, $stand_in" >&2
    docker image inspect "$stand_in" >/dev/null 2>&1 || scripts/stand_in_base.sh "$stand_in" >&2
    base=$stand_in
    set -- --network host "$@"
fi
docker build -q --build-arg "BASE=$base" -t "$name" "$@" .
