"""Results of a file, in order: written in parts, published when they are complete, and the
checkpoint from which another invoke goes on.
"""

import json
from time import monotonic
from typing import Any

from handler.errors import Unfinished
from handler.results import Results

VERSION = 1
PART_BYTES = 8 << 20  # S3 takes none below 5 MiB but the last, and 10,000 of them
EVERY_S = 30.0
KIND = "application/jsonl"


class Output:
    """The results of one file, from where a checkpoint says, or from the beginning."""

    def __init__(self, results: Results, name: str) -> None:
        self._results = results
        self._name = name
        # Not below a name that a notification about results could match.
        self._checkpoint_name = f"{name}.checkpoint"
        self.lines = self.errors = self.position = 0
        self._upload: str | None = None
        self._etags: list[str] = []
        self._buffer = bytearray()
        self._has_checkpoint = False
        self._saved_at = monotonic()
        stored = results.read(self._checkpoint_name)
        if stored is not None:
            self._has_checkpoint = True
            self._restore(stored)

    @property
    def uri(self) -> str:
        """Where the results will be."""
        return self._results.uri(self._name)

    def add(self, line: bytes, position: int) -> None:
        """The next line's result; the file's lines up to it end at `position`."""
        self.lines += 1
        self.position = position
        self._buffer += line
        if len(self._buffer) >= PART_BYTES:
            self._write_part()
            self.checkpoint()
        elif monotonic() - self._saved_at >= EVERY_S:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Save all that is done."""
        state = {
            "version": VERSION,
            "lines": self.lines,
            "errors": self.errors,
            "position": self.position,
            "upload": self._upload,
            "etags": self._etags,
            "since": self._buffer.decode(),
        }
        self._results.write(self._checkpoint_name, json.dumps(state).encode())
        self._has_checkpoint = True
        self._saved_at = monotonic()

    def publish(self) -> None:
        """Make the results visible, whole."""
        if self._upload is None:
            self._results.write(self._name, bytes(self._buffer), KIND)
        else:
            if self._buffer:
                self._write_part()
            if not self._results.end_parts(self._name, self._upload, self._etags):
                self._begin_again()
        if self._has_checkpoint:
            self._results.delete(self._checkpoint_name)

    def _write_part(self) -> None:
        if self._upload is None:
            self._upload = self._results.begin_parts(self._name)
        number = len(self._etags) + 1
        etag = self._results.write_part(self._name, self._upload, number, bytes(self._buffer))
        if etag is None:
            self._begin_again()
        else:
            self._etags.append(etag)
            self._buffer.clear()

    def _begin_again(self) -> None:
        """The upload is over: somebody else has published the same results, or it was thrown away.

        Raises:
            Unfinished: the latter; a retry begins at the beginning.
        """
        if self._has_checkpoint:
            self._results.delete(self._checkpoint_name)
            self._has_checkpoint = False
        if not self._results.exists(self._name):
            raise Unfinished(f"the upload of {self.uri} was aborted: try again from the beginning")

    def _restore(self, stored: bytes) -> None:
        try:
            state: dict[str, Any] = json.loads(stored)
            if state["version"] != VERSION:
                return
            self.lines, self.errors = int(state["lines"]), int(state["errors"])
            self.position = int(state["position"])
            self._upload, self._etags = state["upload"], list(state["etags"])
            self._buffer = bytearray(state["since"].encode())
        except (ValueError, KeyError, TypeError, AttributeError):
            self.lines = self.errors = self.position = 0
            self._upload, self._etags, self._buffer = None, [], bytearray()
