"""A model at `hf://owner/name[@revision]`, by huggingface_hub, pinned to one commit.

Every file is fetched with `hf_hub_download`, so that the client's own settings keep their meaning:
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, HF_HUB_DISABLE_XET and the others.
"""

import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable
from typing import Any, Self

from handler.errors import AccessDenied, DigestMismatch, ModelNotFound, ModelUnavailable
from handler.progress import Stopped, Watch
from handler.remote import READ_BYTES, Hasher, RemoteFile, Transient

_CLIENT_LOGGERS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


class Hub:
    """The files at the top of one repository, at one commit."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._repo, _, revision = uri.removeprefix("hf://").partition("@")
        self._revision = revision or "main"
        self._files: dict[str, RemoteFile] | None = None
        self._snapshot = ""
        """A directory of the local Hugging Face cache, where the client is offline."""
        self._import = threading.Lock()

    def find(self, names: Iterable[str]) -> dict[str, RemoteFile]:
        """Sizes and digests of all files of the commit that the revision is now."""
        if self._files is None:
            self._files = self._offline() if self._is_offline() else self._online()
        return {name: self._files[name] for name in names if name in self._files}

    def source(self, files: Iterable[RemoteFile]) -> str:  # noqa: ARG002 (the commit pins them all)
        """The repository at its commit."""
        return f"hf://{self._repo}@{self._revision}"

    def fetch(self, file: RemoteFile, path: str, watch: Watch) -> str:
        """Fetch one file beside `path`, hash it as it grows, and move it there."""
        if self._snapshot:
            return _copy(os.path.join(self._snapshot, file.name), file, path, watch)
        folder = f"{path}.hub"
        follower = _Follower(file, folder, watch)
        try:
            with self._errors(file.name):
                done = self._hub().hf_hub_download(
                    self._repo,
                    file.name,
                    revision=self._revision,
                    local_dir=folder,
                    tqdm_class=follower.bar,
                )
            watch.check()
            digest = follower.finish(done)
            os.rename(done, path)
        finally:
            follower.close()
            shutil.rmtree(folder, ignore_errors=True)
        return digest

    def _online(self) -> dict[str, RemoteFile]:
        with self._errors(None):
            hub = self._hub()
            info = hub.HfApi().model_info(
                self._repo,
                revision=self._revision,
                files_metadata=True,
                timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
            )
        self._revision = info.sha
        files = {}
        for item in info.siblings:
            digests = {"sha256": item.lfs.sha256} if item.lfs else {"git": item.blob_id}
            (version,) = digests.values()
            files[item.rfilename] = RemoteFile(item.rfilename, item.size, version, digests)
        return files

    def _offline(self) -> dict[str, RemoteFile]:
        """The same from the local cache, whose files are named by the digests they had."""
        with self._errors(None):
            self._snapshot = self._hub().snapshot_download(
                self._repo, revision=self._revision, local_files_only=True
            )
        self._revision = os.path.basename(self._snapshot)
        files = {}
        for name in os.listdir(self._snapshot):
            path = os.path.realpath(os.path.join(self._snapshot, name))
            digest = os.path.basename(path)
            kind = {64: "sha256", 40: "git"}.get(len(digest))
            if os.path.isfile(path):
                digests = {kind: digest} if kind else {}
                files[name] = RemoteFile(name, os.path.getsize(path), digest, digests)
        return files

    def _is_offline(self) -> bool:
        return bool(self._hub().constants.is_offline_mode())

    def _hub(self) -> Any:
        with self._import:
            import huggingface_hub  # 175 ms, only where something is downloaded
            import huggingface_hub.constants

            _hide_queries()
        return huggingface_hub

    def _errors(self, name: str | None) -> "_Errors":
        return _Errors(f"{self.uri}: {name}" if name else self.uri)


class _Errors:
    """Says in our own words what the client raises.

    The client's messages are not repeated: they quote addresses, and those of a CDN are signed.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (Stopped, ModelUnavailable)):
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> Exception:
        from huggingface_hub import errors

        what, kind = self._what, type(error).__name__
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(
            error.__cause__, Exception
        ):
            return self._translated(error.__cause__)  # what the client wraps when nothing is cached
        if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
            return ModelUnavailable(
                f"{what} is not in the local Hugging Face cache, and HF_HUB_OFFLINE forbids to"
                " ask for it"
            )
        if isinstance(error, errors.HfHubHTTPError):
            return self._answered(error.response.status_code, kind)
        if isinstance(error, errors.HFValidationError):
            return ModelNotFound(f"{what} is no name of a repository: write hf://owner/name")
        if isinstance(error, errors.FileMetadataError):
            return ModelUnavailable(f"{what}: this is no answer of a Hub: check HF_ENDPOINT")
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            return error  # trouble with the disk, told by its number
        http_error = errors.HfHubHTTPError.__mro__[1]  # of whichever HTTP library the client uses
        if isinstance(error, (http_error, OSError, RuntimeError)) or kind == "XetDownloadError":
            return Transient(f"{what}: {kind}")
        return ModelUnavailable(f"{what}: the Hub cannot be asked ({kind})")

    def _answered(self, status: int, kind: str) -> Exception:
        reason = f"the Hub answered {status} ({kind})"
        if status in _RETRIED_STATUS:
            return Transient(f"{self._what}: {reason}")
        if status in (401, 403) or kind == "GatedRepoError":
            return AccessDenied(
                f"{self._what}: {reason}: there is no such repository, or HF_TOKEN has no access"
            )
        if status == 404:
            return ModelNotFound(f"{self._what} is not there ({reason})")
        return ModelUnavailable(f"{self._what}: {reason}")


class _Follower:
    """Hashes a file while the client writes it, called by the client's own progress bar.

    The client may also write out of order (Xet): a digest that is wrong is made once more, of the
    whole file, before it counts.
    """

    def __init__(self, file: RemoteFile, folder: str, watch: Watch) -> None:
        self._file = file
        self._folder = folder
        self._watch = watch
        self._hasher = Hasher(file)
        self._fd = -1
        self._counted = 0
        follower = self

        class Bar:
            """What the client calls; it knows tqdm's class and asks for any of its methods."""

            def __init__(self, *args: object, **options: object) -> None:
                """Draw nothing."""

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *error: object) -> None:
                """Nothing to close."""

            def update(self, count: float | None = 1) -> None:
                follower.advance(int(count or 0))

            def __getattr__(self, name: str) -> Any:
                return _nothing

        self.bar = Bar

    def advance(self, count: int) -> None:
        """Count `count` more bytes and hash those that can be read."""
        self._counted += count
        self._watch.advance(count)
        if count < 0:  # the client begins the file again
            self._hasher = Hasher(self._file)
        if self._fd < 0:
            self._fd = _open_incomplete(self._folder)
        if self._fd >= 0:
            self._hasher.read(self._fd, self._file.size)

    def finish(self, path: str) -> str:
        """The SHA-256 of the finished file at `path`.

        Raises:
            DigestMismatch: it is not what was promised.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self._counted < self._file.size:  # from a cache, without a bar
                self._watch.advance(self._file.size - self._counted)
            if self._fd >= 0 and os.path.sameopenfile(fd, self._fd):
                try:
                    self._hasher.read(fd, self._file.size + 1)
                    return self._hasher.finish()
                except DigestMismatch:
                    pass
            whole = Hasher(self._file)
            whole.read(fd, self._file.size + 1)
            return whole.finish()
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _nothing(*args: object, **options: object) -> None:
    """Any other method of a progress bar."""


def _open_incomplete(folder: str) -> int:
    """The file that the client is writing below `folder`; -1 while there is none."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".incomplete"):
                return os.open(os.path.join(parent, name), os.O_RDONLY | os.O_CLOEXEC)
    return -1


def _copy(source: str, file: RemoteFile, path: str, watch: Watch) -> str:
    """Copy a file of the local cache, hashing it."""
    hasher = Hasher(file)
    with open(source, "rb") as reader, open(path, "wb") as writer:
        while data := reader.read(READ_BYTES):
            hasher.update(data)
            writer.write(data)
            watch.advance(len(data))
    return hasher.finish()


def _hide_queries() -> None:
    """Take the query off every address that the client or its HTTP library logs.

    A CDN's addresses carry their signature there. The loggers are made as modules are imported,
    so it is the records that are looked at.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_queries", False):
        return

    def make_without_query(name: str, *args: Any, **options: Any) -> logging.LogRecord:
        record = make(name, *args, **options)
        if name.partition(".")[0] in _CLIENT_LOGGERS:
            record.msg = _QUERY.sub(r"\1?…", record.getMessage())
            record.args = ()
        return record

    make_without_query.hides_queries = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_without_query)
