"""A fast loopback server with S3's replies to HEAD, ranged GET and ListObjectsV2.

It serves the files of one directory as a bucket with `sendfile`, so that a download takes as long
as the client needs. It does not check signatures, and its only error is 404.

    python bench/s3_server.py DIRECTORY      prints the port
"""

import os
import sys
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote
from xml.sax.saxutils import escape

MODIFIED = "Sun, 01 Nov 2026 00:00:00 GMT"


class Handler(BaseHTTPRequestHandler):
    """Serves the file KEY of the directory at `/BUCKET/KEY`, for any bucket."""

    protocol_version = "HTTP/1.1"
    directory = "."

    def do_HEAD(self):
        self.send_object(with_body=False)

    def do_GET(self):
        self.send_object(with_body=True)

    def send_object(self, with_body):
        path, _, query = self.path.partition("?")
        key = unquote(path).lstrip("/").partition("/")[2]
        if "list-type=2" in query:
            self.listing()
            return
        try:
            fd = os.open(os.path.join(self.directory, key), os.O_RDONLY)
        except OSError:
            self.reply(404, {}, b"")
            return
        try:
            size = os.fstat(fd).st_size
            begin, end, status = 0, size, 200
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            if wanted:
                first, _, last = wanted.partition("-")
                begin, end, status = int(first), min(size, int(last or size) + 1), 206
            self.send_response(status)
            self.send_header("Content-Length", str(end - begin))
            self.send_header("ETag", f'"{etag(key)}"')
            self.send_header("Last-Modified", MODIFIED)
            self.send_header("Accept-Ranges", "bytes")
            if wanted:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.end_headers()
            if with_body:
                self.wfile.flush()
                while begin < end:
                    begin += os.sendfile(self.connection.fileno(), fd, begin, end - begin)
        finally:
            os.close(fd)

    def listing(self):
        items = "".join(
            f"<Contents><Key>{escape(entry.name)}</Key><LastModified>2026-11-01T00:00:00.000Z"
            f"</LastModified><ETag>&quot;{etag(entry.name)}&quot;</ETag>"
            f"<Size>{entry.stat().st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for entry in sorted(os.scandir(self.directory), key=lambda entry: entry.name)
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bench</Name>'
            f"<Prefix></Prefix><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>{items}"
            "</ListBucketResult>"
        ).encode()
        self.reply(200, {"Content-Type": "application/xml"}, body)

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def etag(key):
    """The ETag of a multipart upload, which clients do not compare with the content's MD5."""
    return md5(key.encode(), usedforsecurity=False).hexdigest() + "-9"


if __name__ == "__main__":
    Handler.directory = sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
