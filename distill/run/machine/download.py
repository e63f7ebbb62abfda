"""One file from a URL or a path, of a known size and SHA-256: resumable, and never under its name before it is verified.

What has come is kept in `NAME.partial` beside the target. The next attempt asks for the rest (HTTP Range); a server that
ignores Range starts over. A connection that drops is taken up again a few times. Proxies are those of the environment.
"""

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from distill import __version__
from distill.run.errors import UsageError
from distill.run.files import sha256_of
from distill.run.progress import Narrator

BLOCK = 1 << 16  # bytes
TIMEOUT = 30.0  # seconds to connect, and to wait for the next bytes
PAUSES = (1.0, 3.0, 9.0)  # seconds before each further attempt


class Unavailable(Exception):
    """The wanted file cannot be had from this place; the message names the place."""


class _Dropped(Exception):
    """A connection, or its server, failed; another attempt may succeed."""


class _Unreachable(Exception):
    """No connection was made."""


class _Body(NamedTuple):
    """The content of a file from `start` on; `total` is the size of the whole file, None where it is not stated."""

    stream: BufferedReader | http.client.HTTPResponse
    start: int
    total: int | None


def local_path(url: str) -> Path | None:
    """The path that `url` stands for: a file: URL, or a path itself; None for an http or https URL.

    Raises UsageError for any other kind of URL.
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    if "://" in url:
        raise UsageError(f"--url {url}: {parts.scheme} is not supported; give http://, https://, file:// or a path")
    return Path(url).expanduser()


def partial(target: Path) -> Path:
    """The file beside `target` that holds what has come of it."""
    return target.with_name(f"{target.name}.partial")


def download(url: str, target: Path, sha256: str, size: int, narrator: Narrator) -> None:
    """Fetches a file of `size` bytes; `target` gets its name only with the right SHA-256.

    Raises Unavailable, with the partial file kept unless its content is wrong.
    """
    kept = partial(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = kept.exists()
    _complete(url, kept, size, narrator)
    if resumed and sha256_of(kept) != sha256:  # its first part may have come from another place
        narrator.say(f"{target.name}: the resumed file has another SHA-256; starting over")
        kept.unlink()
        _complete(url, kept, size, narrator)
    if (found := sha256_of(kept)) != sha256:
        kept.unlink()
        raise Unavailable(f"{url} is another file: its SHA-256 is {found}")
    with kept.open("r+b") as file:
        os.fsync(file.fileno())
    kept.replace(target)


def _complete(url: str, kept: Path, size: int, narrator: Narrator) -> None:
    """Fetches what `kept` lacks, in several attempts; in one, where the first makes no connection."""
    pauses, connected = iter(PAUSES), False
    while True:
        try:
            return _attempt(url, kept, size, narrator)
        except (_Dropped, _Unreachable) as error:
            connected = connected or isinstance(error, _Dropped)
            pause = next(pauses, None) if connected else None
            if pause is None:
                raise Unavailable(f"{url}: {error}") from None
            narrator.say(f"{url}: {error}; next attempt in {pause:g} s")
            time.sleep(pause)


def _attempt(url: str, kept: Path, size: int, narrator: Narrator) -> None:
    """Appends to `kept` until it has `size` bytes. Raises _Dropped or _Unreachable where it cannot."""
    done = _bytes_in(kept)
    if done > size:
        kept.unlink()
        done = 0
    if done == size:
        return
    stream, start, total = _open(url, done)
    with stream:
        if total not in (None, size):
            raise Unavailable(f"{url} is another file: it has {total:,} bytes, not {size:,}")
        bar = narrator.bar(f"fetching {kept.stem}", size // 1000, start // 1000, unit="kB")
        with kept.open("r+b" if start else "wb") as file, bar as progress:
            file.seek(start)
            file.truncate()
            while block := _read(stream, min(BLOCK, size - start)):
                file.write(block)
                before, start = start, start + len(block)
                progress.advance(start // 1000 - before // 1000)
    if start < size:
        raise _Dropped(f"the connection ended after {start:,} of {size:,} bytes")


def _bytes_in(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _open(url: str, start: int) -> _Body:
    """The file's content from byte `start` on, or from an earlier one where the server chooses so."""
    if path := local_path(url):
        try:
            file = path.open("rb")
        except OSError as error:
            raise Unavailable(f"{url}: {error.strerror}") from None
        file.seek(start)
        return _Body(file, start, path.stat().st_size)
    headers = {"User-Agent": f"saliency-distill/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (408, 429) or error.code >= 500:
                raise _Dropped(f"{error.code} {error.reason}") from None
            raise Unavailable(f"{url}: {error.code} {error.reason}") from None
    except (TimeoutError, ConnectionResetError) as error:  # after the connection was made; before, it is a URLError
        raise _Dropped(_reason(error)) from None
    except (http.client.HTTPException, OSError) as error:
        raise _Unreachable(_reason(getattr(error, "reason", error))) from None
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and given and int(given[1]) <= start:
        return _Body(response, int(given[1]), None if given[2] == "*" else int(given[2]))
    return _Body(response, 0, response.length)


def _read(stream: BufferedReader | http.client.HTTPResponse, size: int) -> bytes:
    """The next bytes, at most `size`, as soon as some are there; none at the end."""
    try:
        return stream.read1(size)
    except (http.client.HTTPException, OSError) as error:
        raise _Dropped(_reason(error)) from None


def _reason(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
