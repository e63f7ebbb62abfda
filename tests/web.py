"""A web server on 127.0.0.1 that serves bytes, and misbehaves as told."""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web(ThreadingHTTPServer):
    """`files` by path. `ranges`: whether Range is honoured. `cuts`: for each next answer, the bytes after which it ends; an
    exhausted list means whole answers. `statuses`: for each next answer, an HTTP status in its place. `stall`: hang after a cut
    until the server ends. `asked`: the Range of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.stall, self.sized = True, False, True
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.asked: list[str] = []
        self.sent, self.over = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        web, content = self.server, self.server.files.get(self.path)
        web.asked.append(self.headers.get("Range", ""))
        if web.statuses or content is None:
            self.send_error(web.statuses.pop(0) if web.statuses else 404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", web.asked[-1]) if web.ranges else None
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if web.sized:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = web.cuts.pop(0) if web.cuts else len(content)
        self.wfile.write(content[start : start + cut])
        self.wfile.flush()
        if web.stall:
            web.sent.set()
            web.over.wait(60)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.over.set()
        web.shutdown()
        thread.join()
        web.server_close()
