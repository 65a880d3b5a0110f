"""Results of a file, in order: written in parts and published when they are complete, with the
checkpoint from which another invocation continues.
"""

import json
from time import monotonic

from gpt2core.startup.slim_typing import Any
from handler.batch.storage import CHECKPOINT, JSONL, Storage
from handler.errors import Unfinished

VERSION = 2
PART_BYTES = 8 << 20  # S3: at least 5 MiB but for the last part, at most 10,000 parts
CHECKPOINT_INTERVAL_S = 30.0


class AlreadyPublished(Exception):
    """Another writer has published the same results; nothing is left to do."""


class ResultFile:
    """The results of one file by one model, continued from a checkpoint if there is one.

    A checkpoint of another model is ignored, so that no file has lines of two models.
    """

    def __init__(self, storage: Storage, name: str, revision: str) -> None:
        self._storage = storage
        self._name = name
        self._revision = revision
        # A name that no notification about results matches.
        self._checkpoint_name = name + CHECKPOINT
        self._saved_at = monotonic()
        self._has_checkpoint = False
        stored = self._stored()
        if stored.get("upload") and stored["model"] != revision:
            storage.abort_multipart_upload(name, stored["upload"])
        state = stored if stored.get("model") == revision else {}
        self.lines: int = state.get("lines", 0)
        self.errors: int = state.get("errors", 0)
        self.position: int = state.get("position", 0)
        self._upload: str | None = state.get("upload")
        self._etags: list[str] = state.get("etags", [])
        self._buffer = bytearray(state.get("since", "").encode())

    def add(self, line: bytes, position: int, is_error: bool) -> None:
        """Add the result of the next line, which ends at `position` in the file.

        Raises:
            AlreadyPublished, Unfinished: see `publish`.
        """
        self.lines += 1
        self.errors += is_error
        self.position = position
        self._buffer += line
        if len(self._buffer) >= PART_BYTES:
            self._write_part()
            self.checkpoint()
        elif monotonic() - self._saved_at >= CHECKPOINT_INTERVAL_S:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Save the state."""
        state = {
            "version": VERSION,
            "model": self._revision,
            "lines": self.lines,
            "errors": self.errors,
            "position": self.position,
            "upload": self._upload,
            "etags": self._etags,
            "since": self._buffer.decode(),
        }
        self._storage.write(self._checkpoint_name, json.dumps(state).encode(), self._revision)
        self._has_checkpoint = True
        self._saved_at = monotonic()

    def publish(self) -> None:
        """Publish the complete results.

        Raises:
            AlreadyPublished: another writer has.
            Unfinished: the upload was thrown away; a retry begins at the beginning.
        """
        if self._upload is None:
            self._storage.write(self._name, bytes(self._buffer), self._revision, JSONL)
        else:
            if self._buffer:
                self._write_part()
            if not self._storage.complete_multipart_upload(self._name, self._upload, self._etags):
                self._stop()
        if self._has_checkpoint:
            self._storage.delete(self._checkpoint_name)

    def _write_part(self) -> None:
        if self._upload is None:
            self._upload = self._storage.create_multipart_upload(self._name, self._revision)
        part = len(self._etags) + 1, bytes(self._buffer)
        etag = self._storage.upload_part(self._name, self._upload, *part)
        if etag is None:
            self._stop()
        else:
            self._etags.append(etag)
            self._buffer.clear()

    def _stop(self) -> None:
        """Stop, because the upload is over; the checkpoint of another upload stays."""
        if self._stored().get("upload") == self._upload:
            self._storage.delete(self._checkpoint_name)
        if self._storage.revision_of(self._name) == self._revision:
            raise AlreadyPublished
        raise Unfinished("the upload of the results was aborted: a retry starts from the beginning")

    def _stored(self) -> dict[str, Any]:
        """The stored checkpoint; empty if there is none or it is invalid."""
        content = self._storage.read(self._checkpoint_name)
        self._has_checkpoint = content is not None
        try:
            state = json.loads(content or b"{}")
            is_whole = (
                state["version"] == VERSION
                and all(type(state[name]) is int for name in ("lines", "errors", "position"))
                and all(isinstance(state[name], str) for name in ("model", "since"))
                and isinstance(state["upload"], str | None)
                and isinstance(state["etags"], list)
            )
        except (ValueError, KeyError, TypeError):
            return {}
        return state if is_whole else {}
