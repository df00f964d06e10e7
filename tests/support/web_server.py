"""A web server on 127.0.0.1 that serves a folder, and can be told to misbehave."""

import re
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Site(ThreadingHTTPServer):
    """`faults` are used up, one per request whose path ends in `only`; `log` has (path, Range) of every request."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges = folder, ranges
        self.faults: list[str] = []
        self.only = ""
        self.log: list[tuple[str, str | None]] = []
        self.etag = "one"
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> "Site":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server
        site.log.append((self.path, self.headers.get("Range")))
        fault = site.faults.pop(0) if site.faults and self.path.endswith(site.only) else ""
        if fault.isdecimal():
            self.send_error(int(fault))
            return
        if fault.startswith("redirect "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("redirect "))
            self.end_headers()
            return
        if fault.startswith("endless"):
            self.send_response(200)
            if fault == "endless length":
                self.send_header("Content-Length", str(10**15))
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 16))
            self.close_connection = True
            return
        if fault == "silent":
            time.sleep(1.5)
            return
        if fault == "closed":
            self.connection.close()
            return
        path = site.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, body = self.answer(data, fault)
        self.body(body, fault, first)

    def answer(self, data: bytes, fault: str) -> tuple[int, bytes]:
        """Send the headers; returns the first byte's place and the body."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or not self.server.ranges:
            self.send_response(200)
            first, body = 0, data
        else:
            first = int(asked[1])
            last = min(int(asked[2]), len(data) - 1) if asked[2] else len(data) - 1
            if first >= len(data):
                self.send_error(416)
                return first, b""
            body = data[first : last + 1]
            if fault == "wrong range":
                first += 7
            self.send_response(206)
            total = len(data) + 1 if fault == "wrong total" else len(data)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{self.server.etag}"')
        self.end_headers()
        return first, body

    def body(self, body: bytes, fault: str, first: int) -> None:
        if fault == "garbled":
            body = bytes(byte ^ 1 for byte in body)
        if fault.startswith("dropped"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        if fault == "trickle":
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                self.wfile.flush()
                time.sleep(0.02)
            return
        self.wfile.write(body)
