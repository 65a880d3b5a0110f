#!/bin/sh
# Run a command with a Docker daemon: the running one, or a temporary one.
#
#   scripts/with_docker.sh COMMAND …      exit code 69 if Docker is not available
set -eu
if docker info >/dev/null 2>&1; then
    exec "$@"
fi
if ! command -v dockerd >/dev/null || [ "$(id -u)" != 0 ]; then
    echo 'Docker is not available: install it, or start its daemon' >&2
    exit 69 # EX_UNAVAILABLE
fi
folder=$(mktemp -d)
dockerd --data-root "$folder/data" --exec-root "$folder/exec" -p "$folder/pid" \
    -H "unix://$folder/socket" >"$folder/log" 2>&1 &
daemon=$!
stop() {
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    umount "$folder"/exec/netns/* 2>/dev/null || true # the daemon does not unmount them
    rm -rf "$folder" || echo "cannot remove $folder" >&2
}
trap stop EXIT
export DOCKER_HOST="unix://$folder/socket"
tries=0
until docker info >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 60 ] || ! kill -0 "$daemon" 2>/dev/null; then
        tail -5 "$folder/log" >&2
        echo 'the Docker daemon failed to start' >&2
        exit 69
    fi
    sleep 0.5
done
"$@"
