"""Stores behind a URL: http, https and s3, whole files and byte ranges, with a bounded number of attempts.

    open_store("https://data.example.org/stores/mmnist")        any web server that serves a folder
    open_store("s3://bucket/stores/mmnist")                     https://bucket.s3.amazonaws.com/stores/mmnist
    AWS_ENDPOINT_URL=http://minio:9000 ... s3://bucket/mmnist   http://minio:9000/bucket/mmnist

Requests are plain GETs, not signed: buckets have to be readable by whoever asks (or a gateway signs). Proxies are taken
from the environment as usual. No other scheme is opened, by redirection neither, and nothing here starts a program.

An interrupted answer is taken up where it ended. With a cache folder, each shard is fetched whole when first touched,
compared with the manifest's SHA-256, and read from there; a copy that is damaged later (its event's CRC says so at each
read) is fetched again. Without a cache, each read is a request for its whole event, which is compared with its CRC.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import re
import secrets
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shards.errors import StoreError, TransportError, UsageError
from shards.filelock import lock_file
from shards.files import LARGEST, Bytes, Files, LocalFiles

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SHARDS_CACHE"  # a folder; the same as open_store(..., cache=FOLDER)
PIECE = 1 << 18
_PASSING = (408, 425, 429)  # of the 4xx answers, those that another attempt may not meet
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")


@dataclass(frozen=True)
class Retry:
    """How long to insist. A request that needs every attempt ends after attempts * (timeout + bytes / slowest) plus the
    pauses, 0.5 + 1 + 2 + 4 s by default."""

    attempts: int = 5
    timeout: float = 30.0  # seconds without an answer
    pause: float = 0.5  # seconds before the second attempt, doubled for each further one
    slowest: float = 1e5  # bytes per second; a connection that is slower on the whole is given up


class Expected(NamedTuple):
    """What the manifest says of a file."""

    size: int
    sha256: str


def location(path: str | Path) -> Path | str:
    """Return a folder, or the URL of a store as http(s) without a slash at its end. Raises UsageError."""
    scheme = _SCHEME.match(str(path)) if isinstance(path, str) else None
    if isinstance(path, Path) or scheme is None:
        return Path(path)
    name = scheme[1].lower()
    parts = urllib.parse.urlsplit(path)
    if name == "file" and parts.netloc in ("", "localhost") and parts.path:
        return Path(urllib.parse.unquote(parts.path))
    if name not in ("http", "https", "s3") or not scheme[2] or not parts.hostname:
        if name != "pipe" and not scheme[2]:
            return Path(path)  # a folder with a colon in its name
        raise UsageError(f"{path}: stores are read from folders and from http://, https://, s3:// and file:// URLs")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"{name}://{parts.hostname}...: the URL of a store has no user, password, ? or #; the names of its files "
            "are put after it"
        )
    url = path.rstrip("/")
    if name == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "").rstrip("/")
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise UsageError(f"AWS_ENDPOINT_URL is {endpoint!r}; it should begin with http:// or https://")
        rest = parts.path.rstrip("/")
        url = f"{endpoint}/{parts.netloc}{rest}" if endpoint else f"https://{parts.netloc}.s3.amazonaws.com{rest}"
    return url


class HttpFiles(Files):
    """The files of a store below a URL."""

    fixed = False
    attempts = 3  # a proxy may have garbled what arrived; a store that is damaged itself stays so

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        super().__init__(url)
        self.retry = retry or Retry()
        self.expected: Mapping[str, Expected] = {}
        self._opener = _opener()

    def __getstate__(self) -> dict[str, object]:
        return {"where": self.where, "retry": self.retry, "expected": self.expected}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _opener=_opener())

    def size(self, file: str) -> int | None:
        return -1

    def read_all(self, file: str, size: int | None = None, most: int = LARGEST) -> bytes:
        data = bytearray()
        with RangeStream(self, file, 0, size, None, whole=True) as stream:
            while piece := stream.read(PIECE):
                data += piece
                if size is None and max(len(data), stream.end or 0) > most:
                    raise StoreError(
                        f"{self.where}/{file}: more than {most} bytes, which this file can't have; is it a store?",
                        shard=file,
                    )
        if size is not None and len(data) != size:
            raise StoreError(f"{self.where}/{file}: {len(data)} bytes, the manifest says {size}", shard=file)
        return bytes(data)

    def read_into(self, file: str, offset: int, out: Bytes, key: str | None = None) -> None:
        view = out.reshape(-1).data
        with RangeStream(self, file, offset, offset + view.nbytes, key) as stream:
            while view.nbytes:
                view = view[stream.readinto(view) :]

    def open(self, file: str, size: int) -> RangeStream:
        return RangeStream(self, file, 0, size, None, whole=True)

    def open_url(self, file: str, begin: int, end: int | None) -> http.client.HTTPResponse:
        """Return the server's answer to a request for bytes [begin, end) of a file, or for all of it."""
        request = urllib.request.Request(  # noqa: S310 - `location` lets only http and https through
            f"{self.where}/{urllib.parse.quote(file)}", headers={"Accept-Encoding": "identity"}
        )
        if begin or end is not None:
            request.add_header("Range", f"bytes={begin}-{'' if end is None else end - 1}")
        response: http.client.HTTPResponse = self._opener.open(request, timeout=self.retry.timeout)
        return response


class RangeStream(io.RawIOBase):
    """Bytes [begin, end) of a remote file. Broken connections are made again, from the byte where they ended."""

    def __init__(
        self, files: HttpFiles, file: str, begin: int, end: int | None, key: str | None, whole: bool = False
    ) -> None:
        super().__init__()
        self.files, self.file, self.key = files, file, key
        self.at, self.end = begin, end
        self.whole = whole  # the first request is for the whole file, which every server understands
        self.failures = 0
        self._response: http.client.HTTPResponse | None = None
        self._deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read at least one byte, or none at the end. Raises StoreError, when all attempts failed too."""
        wanted = min(len(buffer), PIECE) if self.end is None else min(len(buffer), PIECE, self.end - self.at)
        while wanted:
            try:
                if self._response is None:
                    self._response = self._connect()
                data = self._response.read1(wanted)
                if data:
                    if time.monotonic() > self._deadline:
                        raise TimeoutError(f"slower than {self.files.retry.slowest:g} bytes/s")
                    buffer[: len(data)] = data
                    self.at += len(data)
                    return len(data)
                if self.end is None:
                    return 0
                raise ConnectionError(f"the answer ended {self.end - self.at} bytes early")
            except urllib.error.HTTPError as error:
                error.close()
                self._refused(error)
                self._again(error)
            except (OSError, http.client.HTTPException) as error:
                self._again(error)
        return 0

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        super().close()

    def _connect(self) -> http.client.HTTPResponse:
        """Ask for what is still missing, and check that this is what comes."""
        everything = self.whole and self.at == 0
        response = self.files.open_url(self.file, self.at, None if everything else self.end)
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        missing = 0 if self.end is None else self.end - self.at
        self._deadline = time.monotonic() + self.files.retry.timeout + missing / self.files.retry.slowest
        return response

    def _check(self, response: http.client.HTTPResponse) -> None:
        known = self.files.expected.get(self.file)
        length = response.headers.get("Content-Length", "")
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != self.at:
                raise ConnectionError(f"asked for byte {self.at}, got {response.headers.get('Content-Range')!r}")
            total = found[2]
        else:
            total = length if length.isdecimal() else "*"
            if self.at and not self.whole:
                raise StoreError(
                    f"{self.files.where}/{self.file}: this server doesn't serve byte ranges (Range); set "
                    f"{CACHE_VARIABLE}=FOLDER to fetch shards whole, or copy the store to a folder",
                    shard=self.file,
                    key=self.key,
                    offset=self.at,
                )
            for _ in range(self.at // PIECE):  # taken up again without ranges: pass over what is known
                response.read(PIECE)
            response.read(self.at % PIECE)
        if total != "*":
            if known is not None and int(total) != known.size:
                raise StoreError(
                    f"{self.files.where}/{self.file}: {total} bytes, the manifest says {known.size}; "
                    "is the store whole on the server? run there: python -m shards verify",
                    shard=self.file,
                    key=self.key,
                    offset=self.at,
                )
            if self.end is None:
                self.end = int(total)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Raise StoreError for an answer that another attempt will not change."""
        if 400 <= error.code < 500 and error.code not in _PASSING:
            what = {404: "this file is absent on the server", 416: "the file is shorter than it should be"}
            raise StoreError(
                f"{self.files.where}/{self.file}: {what.get(error.code, 'the server refuses it')} (HTTP {error.code})"
                f"{f', wanted for {self.key}' if self.key else ''}; check the URL and the access rights",
                shard=self.file,
                key=self.key,
                offset=self.at,
            ) from None

    def _again(self, error: Exception) -> None:
        """Get ready for the next attempt. Raises TransportError if there is none left."""
        if self._response is not None:
            self._response.close()
            self._response = None
        self.failures += 1
        retry = self.files.retry
        if self.failures >= retry.attempts:
            raise TransportError(
                f"{self.files.where}/{self.file}, byte {self.at}{f' of {self.key}' if self.key else ''}: "
                f"{retry.attempts} attempts failed, the last: {error or type(error).__name__}; "
                "check the server, then run the same command again",
                shard=self.file,
                key=self.key,
                offset=self.at,
            ) from None
        time.sleep(retry.pause * 2 ** (self.failures - 1))


class CachedFiles(Files):
    """Remote files that are fetched whole into a folder, once for all processes that use it, and read there."""

    fixed = False  # a disk for caches may be purged, full, or worse
    attempts = 2

    def __init__(self, remote: HttpFiles, folder: Path) -> None:
        super().__init__(remote.where)
        self.remote, self.local = remote, LocalFiles(folder)

    def size(self, file: str) -> int | None:
        return -1

    def read_all(self, file: str, size: int | None = None, most: int = LARGEST) -> bytes:
        return self.remote.read_all(file, size, most)

    def read_into(self, file: str, offset: int, out: Bytes, key: str | None = None) -> None:
        self._fetch(file)
        self.local.read_into(file, offset, out, key)

    def open(self, file: str, size: int) -> io.RawIOBase:
        self._fetch(file)
        return self.local.open(file, size)

    def forget(self, file: str) -> None:
        if file in self.remote.expected:
            self._remove(file, "damaged")

    def _remove(self, file: str, why: str) -> None:
        logger.warning("%s: this copy of %s/%s is %s: fetched again", self.local.folder / file, self.where, file, why)
        self.local.close(file)
        (self.local.folder / file).unlink(missing_ok=True)

    def _is_here(self, file: str) -> bool:
        """Whether the file is in the cache, with its size; one of another size is removed."""
        target, size = self.local.folder / file, self.remote.expected[file].size
        try:
            found = target.lstat()
        except (FileNotFoundError, NotADirectoryError):
            self.local.close(file)  # purged: what is still open would vanish with this process
            return False
        if stat.S_ISREG(found.st_mode) and found.st_size == size:
            return True
        what = f"{found.st_size} bytes instead of {size}" if stat.S_ISREG(found.st_mode) else "no regular file"
        self._remove(file, what)
        return False

    def _fetch(self, file: str) -> None:
        """Have the file here. Raises StoreError if it isn't the manifest's, or can't be written."""
        if self._is_here(file):
            return
        target = self.local.folder / file
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(target.with_name(f"{target.name}.lock"), flags, 0o666)
            try:
                lock_file(lock, wait=True)  # others wait, and then find the file
                if not self._is_here(file):
                    self._copy(file, target)
            finally:
                os.close(lock)
        except OSError as error:
            raise StoreError(
                f"{target}: this copy of {self.where}/{file}, {self.remote.expected[file].size} bytes, can't be "
                f"written ({error.strerror or error}); make room, or name another folder for the cache "
                f"({CACHE_VARIABLE})",
                shard=file,
            ) from None

    def _copy(self, file: str, target: Path) -> None:
        """Fetch the file under a name that nobody can foresee, compare it, and rename it."""
        expected, digest = self.remote.expected[file], hashlib.sha256()
        for leftover in target.parent.glob(f".{target.name}.*.partial"):  # of killed processes: we hold the lock
            leftover.unlink()
        partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
        # Not mkstemp, whose files nobody else may read: a cache may be shared, as the umask says.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "wb") as copy, self.remote.open(file, expected.size) as stream:
                while piece := stream.read(PIECE):
                    digest.update(piece)
                    copy.write(piece)
            if digest.hexdigest() != expected.sha256:
                raise StoreError(
                    f"{self.where}/{file}: what the server gives has another SHA-256 than the manifest says; "
                    "is the store whole there? run there: python -m shards verify",
                    shard=file,
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _opener() -> urllib.request.OpenerDirector:
    """Return one that knows http and https only; the usual one would follow a redirection to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
