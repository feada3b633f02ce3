"""An HTTP server of one file, with the habits and faults of servers that files are fetched from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Set its fields between requests.

    Attributes:
        cut_after: of each of the next answers so many bytes of content are sent, then it is cut off.
        asked: the Range and If-Range of each request.
    """

    content: bytes
    etag: str | None = '"one"'
    last_modified: str | None = None
    ranges: bool = True
    status: int = 200
    redirects: int = 0
    encoding: str | None = None
    says_length: bool = True
    shift: int = 0
    cut_after: list[int] = field(default_factory=list)
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((wanted, condition))
        if self.redirects:
            self.redirects -= 1
            handler.send_response(302)
            handler.send_header("Location", self.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        if wanted and self.ranges and condition in (self.etag, self.last_modified):
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.shift
        size = len(self.content)
        if start and start >= size:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{size}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else self.status)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if self.says_length:
            handler.send_header("Content-Length", str(size - start))
        for name, value in (
            ("ETag", self.etag),
            ("Last-Modified", self.last_modified),
            ("Content-Encoding", self.encoding),
        ):
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        body = self.content[start:]
        handler.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)


@contextmanager
def serving(content: bytes, file_name: str) -> Iterator[FileServer]:
    served = FileServer(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}/{file_name}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
