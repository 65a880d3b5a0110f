"""A model at `hf://owner/name[@revision]`, downloaded with huggingface_hub from one commit.

Files are fetched with `hf_hub_download`, so the client's settings apply: HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, HF_HUB_DISABLE_XET and the others.
"""

import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from handler.errors import AccessDenied, ModelNotFound, ModelUnavailable
from handler.store.part import Part
from handler.store.transfer import DownloadState, RemoteFile, Stopped, Transient

_CLIENT_LOGGERS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
_NO_HUB = "the response is not from a Hugging Face Hub: check HF_ENDPOINT"


class Hub:
    """The top-level files of one repository at one commit."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._repo, _, revision = uri.removeprefix("hf://").partition("@")
        self._revision = revision or "main"
        self._files: dict[str, RemoteFile] | None = None
        self._is_listed = False
        """Whether `_files` is complete, or has only the files that were requested."""
        self._snapshot = ""
        """A directory of the local Hugging Face cache, if the client is offline."""
        self._import = threading.Lock()

    def find(self, names: Iterable[str], state: DownloadState) -> dict[str, RemoteFile]:
        """Sizes and digests of files at the revision's current commit."""
        if self._files is None:
            self._files = self._offline() if self._is_offline() else self._online()
        files = self._files
        for name in names:
            state.check()
            # The response of a mirror may lack fields.
            incomplete = files[name].size < 0 if name in files else not self._is_listed
            if incomplete and (found := self._head(name)):
                files[name] = found
        return {name: files[name] for name in names if name in files}

    def source(self, files: Iterable[RemoteFile]) -> str:  # noqa: ARG002 (the commit pins all files)
        """The repository and its commit."""
        return f"hf://{self._repo}@{self._revision}"

    def with_digests(self, file: RemoteFile) -> RemoteFile:
        """The file, unchanged: its digests are already known."""
        return file

    def fetch(self, file: RemoteFile, part: Part, state: DownloadState, again: bool) -> None:  # noqa: ARG002
        """Fetch the whole file unless it is complete, then hash it."""
        if part.size == file.size:
            return
        if self._snapshot:
            shutil.copyfile(os.path.join(self._snapshot, file.name), part.scratch)
            state.advance(file.size)
            part.replace(part.scratch)
            return
        try:
            with self._errors(f"{self.uri}: {file.name}"):
                done = self._hub().hf_hub_download(
                    self._repo,
                    file.name,
                    revision=self._revision,
                    local_dir=part.scratch,
                    tqdm_class=_bar(state),
                )
            state.check()
            part.replace(done)
        finally:
            shutil.rmtree(part.scratch, ignore_errors=True)

    def _online(self) -> dict[str, RemoteFile]:
        hub = self._hub()
        with self._errors(self.uri):
            try:
                info = hub.HfApi().model_info(
                    self._repo,
                    revision=self._revision,
                    files_metadata=True,
                    timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
                )
            except (KeyError, TypeError, AttributeError, ValueError):  # a mirror with other fields
                return {}
        if not info.sha or info.siblings is None:
            return {}
        self._revision, self._is_listed = info.sha, True
        files = {}
        for item in info.siblings:
            etag = item.lfs.sha256 if item.lfs else item.blob_id
            # Without `lfs`, the blob id of an LFS file is that of its pointer.
            is_pointer = not item.lfs and item.rfilename.endswith(".safetensors")
            known = etag and item.size is not None and not is_pointer
            files[item.rfilename] = _file(item.rfilename, item.size if known else -1, etag or "")
        return files

    def _head(self, name: str) -> RemoteFile | None:
        """The result of a HEAD request for one file; None if it does not exist."""
        hub = self._hub()
        with self._errors(f"{self.uri}: {name}"):
            try:
                url = hub.hf_hub_url(self._repo, name, revision=self._revision)
                head = hub.get_hf_file_metadata(url, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT)
            except hub.errors.HfHubHTTPError as error:
                if error.response.status_code != 404:
                    raise
                return None
        if not head.commit_hash or not head.etag or head.size is None:
            raise ModelUnavailable(f"{self.uri}: {name}: {_NO_HUB}")
        self._revision = head.commit_hash
        return _file(name, head.size, head.etag)

    def _offline(self) -> dict[str, RemoteFile]:
        """Files in the local cache, where blobs are named by their digests."""
        with self._errors(self.uri):
            self._snapshot = self._hub().snapshot_download(
                self._repo, revision=self._revision, local_files_only=True
            )
        self._revision = os.path.basename(self._snapshot)
        self._is_listed = True
        files = {}
        for name in os.listdir(self._snapshot):
            path = os.path.realpath(os.path.join(self._snapshot, name))
            if os.path.isfile(path):
                files[name] = _file(name, os.path.getsize(path), os.path.basename(path))
        return files

    def _is_offline(self) -> bool:
        return bool(self._hub().constants.is_offline_mode())

    def _hub(self) -> Any:
        with self._import:
            import huggingface_hub  # 175 ms, only for downloads
            import huggingface_hub.constants
            import huggingface_hub.errors

            _hide_queries()
        return huggingface_hub

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Map the client's exceptions to ours.

        The client's messages are not included: they contain URLs, and CDN URLs are signed.
        """
        try:
            yield
        except (Stopped, ModelUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 (the client may raise anything)
            raise _map_client_error(what, error) from None


def _map_client_error(what: str, error: Exception) -> Exception:
    from huggingface_hub import errors

    kind, cause = type(error).__name__, error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(cause, Exception):
        return _map_client_error(what, cause)  # the client wraps the cause if nothing is cached
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return ModelUnavailable(
            f"{what} is not in the local Hugging Face cache, and HF_HUB_OFFLINE prevents a download"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _status_error(what, error.response.status_code, kind)
    if isinstance(error, errors.HFValidationError):
        return ModelNotFound(f"{what} is not a valid repository name: use hf://owner/name")
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return error  # a disk error
    http_error = errors.HfHubHTTPError.__mro__[1]  # of the HTTP library that the client uses
    transient = (http_error, OSError, RuntimeError)
    is_no_hub = isinstance(error, errors.FileMetadataError)
    if not is_no_hub and (isinstance(error, transient) or kind == "XetDownloadError"):
        return Transient(f"{what}: {kind}")
    return ModelUnavailable(f"{what}: {_NO_HUB} ({kind})")


def _status_error(what: str, status: int, kind: str) -> Exception:
    reason = f"the Hub returned {status} ({kind})"
    if status in _RETRIED_STATUS:
        return Transient(f"{what}: {reason}")
    if status in (401, 403) or kind == "GatedRepoError":
        return AccessDenied(
            f"{what}: {reason}: the repository does not exist, or HF_TOKEN has no access to it"
        )
    if status == 404:
        return ModelNotFound(f"{what} does not exist ({reason})")
    return ModelUnavailable(f"{what}: {reason}: check HF_ENDPOINT")


def _file(name: str, size: int, etag: str) -> RemoteFile:
    """A file with its ETag: the SHA-256 of an LFS file, else the SHA-1 of a Git blob."""
    kind = {64: "sha256", 40: "git"}.get(len(etag) if set(etag) <= set("0123456789abcdef") else 0)
    return RemoteFile(name, size, etag, {kind: etag} if kind else {})


def _bar(state: DownloadState) -> type:
    """A replacement for tqdm's class, which the client calls while it downloads."""

    class Bar:
        def __init__(self, *args: object, **options: object) -> None:
            """Do not draw anything."""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None:
            """Do nothing."""

        def update(self, count: float | None = 1) -> None:
            state.advance(int(count or 0))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    return Bar


def _hide_queries() -> None:
    """Remove the query string from URLs in log records of the client and its HTTP library.

    The query strings of CDN URLs contain signatures. Uses a record factory because the loggers are
    created when modules are imported.
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
