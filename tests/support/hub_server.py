"""A local server with the part of the Hub's API that downloads use.

It serves model info with blob digests, HEAD with commit, ETag and linked size, and redirects LFS
files to another origin with a signed query, like the Hub's CDN. The clients are `hf_hub_download`
and `model_info` of huggingface_hub.

Sources: huggingface_hub's documentation ("Download files", "Environment variables") and the Hub
API's OpenAPI page.
"""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from tests.support.ports import LoopbackServer

COMMIT = "6" * 40
SECRET = "cdn-signature-not-to-be-logged"
TOKEN = "hf_tokenNotToBeLogged"


class HubServer(LoopbackServer):
    """One repository, `owner/name`, with the files of a directory; `.safetensors` are LFS files."""

    def __init__(self, folder: Path, repo: str = "owner/name", token: str | None = None) -> None:
        super().__init__(Handler)
        self.folder = folder
        self.repo = repo
        self.token = token
        self.cdn = self.address
        """The origin that LFS files are redirected to."""


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        path, _, query = self.path.partition("?")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        repo = self.server.repo.split("/")
        if parts[0] == "cdn":
            signed = f"Signature={SECRET}" in query
            self.file(self.server.folder / parts[1], {}) if signed else self.error(403, "")
        elif self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.error(401, "RepoNotFound")
        elif parts[:4] == ["api", "models", *repo]:
            kind, revision = [*parts[4:], "revision", "main"][:2]
            self.tree() if kind == "tree" else self.info(revision)
        elif parts[:2] == repo and parts[2] == "resolve" and len(parts) == 5:
            self.resolve(parts[3], parts[4])
        else:
            self.error(404, "RepoNotFound")

    do_GET = do_HEAD = handle_request  # noqa: N815

    def info(self, revision: str) -> None:
        if revision not in ("main", COMMIT):
            self.error(404, "RevisionNotFound")
            return
        siblings = []
        for path in sorted(self.server.folder.iterdir()):
            content = path.read_bytes()
            item = {"rfilename": path.name, "size": len(content), "blobId": git_digest(content)}
            if is_lfs(path.name):
                sha256 = hashlib.sha256(content).hexdigest()
                item["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(item)
        repo = self.server.repo
        fields = {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "private": False,
                  "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(fields).encode())

    def tree(self) -> None:
        """The same files in the format for `snapshot_download`."""
        items = []
        for path in sorted(self.server.folder.iterdir()):
            content = path.read_bytes()
            item = {"type": "file", "path": path.name, "size": len(content)}
            item["oid"] = git_digest(content)
            if is_lfs(path.name):
                sha256 = hashlib.sha256(content).hexdigest()
                item["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            items.append(item)
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(items).encode())

    def resolve(self, revision: str, name: str) -> None:
        path = self.server.folder / name
        if revision not in ("main", COMMIT):
            self.error(404, "RevisionNotFound")
        elif not path.is_file():
            self.error(404, "EntryNotFound")
        elif is_lfs(name):
            content = path.read_bytes()
            headers = {
                "Location": f"http://{self.server.cdn}/cdn/{name}?Signature={SECRET}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            }
            self.reply(302, headers, b"")
        else:
            etag = f'"{git_digest(path.read_bytes())}"'
            self.file(path, {"X-Repo-Commit": COMMIT, "ETag": etag})

    def file(self, path: Path, headers: dict[str, str]) -> None:
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Accept-Ranges": "bytes", **headers}
        if wanted:
            begin = int(wanted[1])
            end = min(len(content), int(wanted[2] or len(content)) + 1)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            content = content[begin:end]
        self.reply(206 if wanted else 200, headers, content)

    def error(self, status: int, code: str) -> None:
        self.reply(status, {"X-Error-Code": code} if code else {}, b"")

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Write no log."""


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def git_digest(content: bytes) -> str:
    """The id of a Git blob, as in `git hash-object`."""
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()
