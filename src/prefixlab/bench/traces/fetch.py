"""Downloading a public trace: resumable, checked, and there whole or not at all.

Owns the files beside the trace while and after it comes: `FILE.part` what has come so far, `FILE.part.json`
which version of what it is a part of, `FILE.sha256` the checksum of a trace whose publishers name none, as it
was when first seen. The table of traces is `public.py`'s.

Invariant: `FILE` itself only ever appears by a rename, after it was checked; bytes of two versions are never
joined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.public import PublicTrace
from prefixlab.bench.traces.reading import detect_format
from prefixlab.core.errors import ConfigError, PrefixlabError

TIMEOUT_S = 30.0
"""Without a byte, on connecting or in the middle."""

OnBytes = Callable[[int, "int | None"], None]
"""Bytes that are there, and how many there will be, where the server says."""


class FetchError(PrefixlabError):
    """A trace could not be fetched, or what came is not the trace."""


class Fetched(msgspec.Struct, frozen=True):
    """What a fetch led to.

    Attributes:
        checked_against: what the checksum was compared with, for the user; empty where there was nothing yet.
    """

    path: Path
    sha256: str
    num_bytes: int
    was_there: bool
    checked_against: str


class _Part(msgspec.Struct):
    """Which version of which file a part is of. `validator` is an ETag or a date, as If-Range takes them."""

    url: str
    validator: str


class _ChangedError(Exception):
    """What the part is of is no longer what the server has."""


class _BrokenError(Exception):
    """The connection ended before the file did."""


def fetch(trace: PublicTrace, folder: Path, on_bytes: OnBytes = lambda done, total: None) -> Fetched:
    """Download `trace` into `folder`, going on where an earlier try ended.

    A connection that breaks is taken up again as long as each try brings more than was there before.

    Raises:
        FetchError: no network, no such file, or a file that is not the one wanted.
        ConfigError: the folder cannot be written to, or holds another file of that name.
    """
    target = folder / trace.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return _is_there(trace, target)
        part, known = Path(f"{target}.part"), Path(f"{target}.part.json")
        _download(trace, part, known, on_bytes)
        sha256 = checksum(part)
        against = _check(trace, part, target, sha256, lambda: _remove(part, known))
        num_bytes = part.stat().st_size
        if not against:
            _recorded(target).write_text(f"{sha256}  {target.name}\n")
        part.replace(target)
        known.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error}") from None
    return Fetched(target, sha256, num_bytes, False, against)


def checksum(path: Path) -> str:
    """Its sha256, as lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_there(trace: PublicTrace, target: Path) -> Fetched:
    sha256 = checksum(target)
    wanted, against = _wanted(trace, target)
    if wanted is not None and sha256 != wanted:
        raise ConfigError(
            f"{target} is there and is another file: its sha256 is {sha256}, {against} {wanted}; move it "
            "away to fetch the trace"
        )
    return Fetched(target, sha256, target.stat().st_size, True, against)


def _wanted(trace: PublicTrace, target: Path) -> tuple[str | None, str]:
    """The checksum it must have, and where that is known from."""
    if trace.sha256 is not None:
        return trace.sha256, "the published file's is"
    recorded = _recorded(target)
    if recorded.exists():
        return recorded.read_text().split()[0], f"at the first download ({recorded.name}) it was"
    return None, ""


def _recorded(target: Path) -> Path:
    return Path(f"{target}.sha256")


def _check(trace: PublicTrace, part: Path, target: Path, sha256: str, drop: Callable[[], None]) -> str:
    """Refuse a wrong file, and drop it: going on with it could never make it right."""
    wanted, against = _wanted(trace, target)
    if wanted is not None and sha256 != wanted:
        num_bytes = part.stat().st_size
        drop()
        raise FetchError(
            f"{trace.url} gave a wrong file: sha256 {sha256} ({num_bytes:,} bytes), {against} {wanted}; "
            "nothing was kept"
        )
    try:
        with Source(part) as source:
            found = detect_format(source).name
    except ConfigError as error:
        found = f"not a trace ({error})"
    if found != trace.format:
        drop()
        raise FetchError(f"{trace.url} gave a wrong file, {found}, not {trace.format}; nothing was kept")
    return against


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _download(trace: PublicTrace, part: Path, known: Path, on_bytes: OnBytes) -> None:
    """Until all of it is in `part`."""
    # Ranges are of the bytes as they are, so nothing on the way may compress them.
    headers = {"accept-encoding": "identity", "user-agent": "prefixlab"}
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers=headers) as client:
        longest = _size(part)
        while True:
            try:
                _attempt(client, trace, part, known, on_bytes)
                return
            except _ChangedError:
                _remove(part, known)
                longest = 0
            except (_BrokenError, httpx.TransportError) as error:
                size = _size(part)
                if size > longest:
                    longest = size
                    continue
                if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not size:
                    raise FetchError(
                        f"{trace.url} cannot be reached: {error or 'no answer'}; is there a network, or a "
                        "proxy to name in HTTPS_PROXY?"
                    ) from None
                raise FetchError(
                    f"{trace.url}: the connection broke ({error or type(error).__name__}) with {size:,} "
                    f"bytes in {part}; run it again to go on from there"
                ) from None
            except httpx.HTTPError as error:
                raise FetchError(f"{trace.url} cannot be fetched: {error}") from None


def _attempt(client: httpx.Client, trace: PublicTrace, part: Path, known: Path, on_bytes: OnBytes) -> None:
    """One request, for what is missing."""
    done, headers = _size(part), {}
    validator = _validator_of(known, trace.url)
    if done and validator:
        headers = {"range": f"bytes={done}-", "if-range": validator}
    with client.stream("GET", trace.url, headers=headers) as response:
        if response.status_code == 416 and headers:
            if response.headers.get("content-range") == f"bytes */{done}":
                return  # it was whole already
            raise _ChangedError
        if response.status_code not in (200, 206):
            raise FetchError(f"{trace.url} answered {response.status_code} {response.reason_phrase}".rstrip())
        if response.headers.get("content-encoding", "identity") != "identity":
            raise FetchError(f"{trace.url} came compressed, which was not asked for")
        goes_on = response.status_code == 206
        if goes_on and not response.headers.get("content-range", "").startswith(f"bytes {done}-"):
            raise FetchError(
                f"{trace.url} sent another part than bytes {done:,} and on, which were asked for"
            )
        if not goes_on:
            done = 0
            validator = _validator(response.headers)
            known.write_bytes(msgspec.json.encode(_Part(trace.url, validator)))
        length = response.headers.get("content-length")
        total = done + int(length) if length is not None else None
        with part.open("ab" if goes_on else "wb") as file:
            # As it comes: cut into pieces of one size, the last would be lost when the connection breaks.
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                on_bytes(done, total)
        if total is not None and done != total:
            raise _BrokenError(f"{done:,} of {total:,} bytes came")


def _validator(headers: httpx.Headers) -> str:
    """What tells this version from others, byte for byte; empty where the server says nothing of the kind.

    A weak ETag promises no equal bytes, so If-Range must not have one (RFC 9110, 13.1.5).
    """
    etag: str = headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")


def _validator_of(known: Path, url: str) -> str:
    try:
        part = msgspec.json.decode(known.read_bytes(), type=_Part)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return part.validator if part.url == url else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
