"""Loopback ports for servers that tests start."""

import socket
import subprocess
from time import monotonic


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Return when something listens on `port`."""
    give_up = monotonic() + 30
    while monotonic() < give_up and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            continue
        return
    raise AssertionError("the server does not listen")
