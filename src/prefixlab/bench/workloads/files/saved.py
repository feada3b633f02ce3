"""A workload as it was sent, in a file, to be sent again: JSON lines, compressed where the name ends in .gz.

    {"prefixlab_workload": 1, "version": "…", "page_size": 16, "requests": 200, "settings": {…}, …}
    {"id": "0", "token_ids": [17, 4, …], "prompt_tokens": 1024, "output_tokens": 128, "offset_s": 0.25, …}

Owns that form, both ways. What a later turn waits for, and what it continues, is in its line; of what
continues another, the tokens that are new. Expected cached tokens are written for whoever reads the file,
with the cache they are for; reading it back they are found anew, from the tokens.

Invariants: what is read back is sent byte for byte as it was sent; a file is there whole or not at all; of
prompts no more is held at once than a request's, but while the sharing of a file is found out.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import msgspec
import numpy as np

from prefixlab import __version__
from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.workloads.files.custom import Row
from prefixlab.bench.workloads.prefix_tree import PrefixTree
from prefixlab.bench.workloads.sketch import NOBODY, IntArray, Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError

FORMAT = 1
_DRAFT = ".new"
_MAX_TOKEN = (1 << 31) - 1


class Head(msgspec.Struct):
    """What the requests of a file are of.

    Attributes:
        page_size: the cache that expectations are for; None where no page size was known.
        capacity_tokens: what that cache holds; None: it forgets nothing.
        settings: of the run, secrets masked.
    """

    prefixlab_workload: int
    version: str = __version__
    requests: int = 0
    repeat: int = 0
    seed: int | None = None
    page_size: int | None = None
    capacity_tokens: int | None = None
    settings: dict[str, Any] = {}


class _Line(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    id: str
    output_tokens: int
    token_ids: list[int] | None = None
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt_tokens: int = 0
    expected_cached_tokens: int | None = None
    offset_s: float | None = None
    session_id: str | None = None
    turn: int | None = None
    after: int | None = None
    delay_s: float = 0.0
    continues: bool = False


def path_of(path: Path, *words: str) -> Path:
    """`w.jsonl.gz` as `w-words.jsonl.gz`: of one of several."""
    stem, dot, endings = path.name.partition(".")
    return path.with_name("-".join([stem, *words]) + dot + endings)


def write_workload(
    path: Path, head: Head, plan: Iterable[Planned], *, timed: bool, id_prefix: str = ""
) -> None:
    """Write a plan as it is made.

    Args:
        timed: its requests have times of their own.
        id_prefix: of request and session ids, which is left out: whoever sends them again puts it there.

    Raises:
        ConfigError: the file cannot be written.
    """
    draft = path.with_name(path.name + _DRAFT)
    encoder = msgspec.json.Encoder()
    try:
        with _writing(draft, compressed=path.suffix == ".gz") as file:
            file.write(encoder.encode(head) + b"\n")
            for planned in plan:
                file.write(encoder.encode(_line(planned, timed=timed, id_prefix=id_prefix)) + b"\n")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"--save-workload {path} cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path, *, compressed: bool) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if not compressed:
            yield file
            return
        # No time in the header: the same workload makes the same file.
        with (
            gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
            io.BufferedWriter(cast(Any, packed)) as buffer,
        ):
            yield cast(BinaryIO, buffer)


def _line(planned: Planned, *, timed: bool, id_prefix: str) -> _Line:
    request = planned.request
    ids = request.prompt_token_ids
    session = planned.session_id
    return _Line(
        id=request.request_id.removeprefix(id_prefix),
        output_tokens=request.max_new_tokens,
        token_ids=None if ids is None else ids.tolist(),
        text=request.prompt_text,
        messages=None if request.messages is None else list(request.messages),
        prompt_tokens=planned.num_prompt_tokens,
        expected_cached_tokens=planned.num_expected_cached_tokens,
        offset_s=planned.offset_s if timed else None,
        session_id=None if session is None else session.removeprefix(id_prefix),
        turn=planned.turn,
        after=planned.after,
        delay_s=planned.delay_s,
        continues=planned.continues,
    )


def saved_workload(path: Path) -> Workload:
    """What a file holds.

    Raises:
        ConfigError: the file, or a line of it, cannot be used; it names both.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error.strerror}") from None
    return _read(path, status.st_mtime_ns, status.st_size)


def tokenizer_of(path: Path) -> str | None:
    """The --tokenizer that prompts of a file, in words, were counted with; None without one."""
    lines = _Lines(path)
    next(iter(lines), None)
    name = lines.head.settings.get("target", {}).get("tokenizer")
    return name if isinstance(name, str) else None


@lru_cache(maxsize=4)
def _read(path: Path, changed_ns: int, size: int) -> Workload:
    """Once for a file that has not changed: settings, checks and the run all ask for it."""
    lines = _Lines(path)
    columns = _Columns()
    for number, line in enumerate(lines):
        columns.add(number, line, f"--dataset-path {path}, line {number + 2}")
    head, count = lines.head, len(columns.output_tokens)
    if not count:
        raise ConfigError(f"--dataset-path {path} holds no request")
    if head.requests != count:
        raise ConfigError(f"--dataset-path {path} ends early: {count:,} of {head.requests:,} requests")
    return Workload(
        sketches=columns.sketches(),
        rows=SavedRows(path, range(count)),
        counted=columns.counted,
        rows_known=columns.all_ids,
        notes=(f"prompts are those of {path}, saved by prefixlab {head.version}",),
        length_flags=f"{path}",
    )


@dataclass(frozen=True)
class SavedRows(Sequence[Row]):
    """The rows of a file, read again whenever they are gone through.

    Attributes:
        chosen: which of them.
    """

    path: Path
    chosen: range

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Row]:
        for line in itertools.islice(_Lines(self.path), self.chosen.start, self.chosen.stop):
            yield _row(line)

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> SavedRows: ...

    def __getitem__(self, place: int | slice) -> Row | SavedRows:
        if isinstance(place, slice):
            return replace(self, chosen=self.chosen[place])
        number = self.chosen[place]
        return _row(next(itertools.islice(_Lines(self.path), number, None)))


def _row(line: _Line) -> Row:
    return Row(
        line.output_tokens,
        text=line.text,
        token_ids=None if line.token_ids is None else as_token_ids(line.token_ids),
        messages=None if line.messages is None else tuple(line.messages),
    )


class _Lines:
    """The lines of a file behind its head, one after another; `head` is known once the first was asked
    for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.head = Head(FORMAT)

    def __iter__(self) -> Iterator[_Line]:
        decoder = msgspec.json.Decoder(_Line)
        number = 0
        try:
            with gzip.open(self._path) if self._path.suffix == ".gz" else self._path.open("rb") as file:
                for number, text in enumerate(cast(Iterable[bytes], file), 1):
                    if number == 1:
                        self.head = msgspec.json.decode(text, type=Head)
                        if self.head.prefixlab_workload > FORMAT:
                            raise ConfigError(
                                f"--dataset-path {self._path} was saved by a later version: "
                                f"{self.head.version}"
                            )
                    else:
                        yield decoder.decode(text)
        except msgspec.DecodeError as error:
            what = "not a workload that --save-workload wrote" if number == 1 else "not a request"
            raise ConfigError(f"--dataset-path {self._path}, line {number}: {what}: {error}") from None
        except (OSError, EOFError, zlib.error) as error:
            said = getattr(error, "strerror", None) or error
            raise ConfigError(f"--dataset-path {self._path} cannot be read: {said}") from None


class _Columns:
    """What all lines say, but for the prompts.

    Attributes:
        counted: the tokens of every prompt are known.
        all_ids: every prompt is token ids.
        offsets_s: empty where there are no times.
    """

    def __init__(self) -> None:
        self.counted = self.all_ids = True
        self.output_tokens = array("q")
        self.offsets_s = array("d")
        self._whole = array("q")
        self._after, self._turns = array("q"), array("q")
        self._delays_s, self._continues = array("d"), array("b")
        self._session_ids: list[str] = []
        self._tree = PrefixTree()

    def add(self, number: int, line: _Line, place: str) -> None:
        """Raises ConfigError where the line contradicts itself, or those before it."""
        self._check(number, line, place)
        own = len(line.token_ids) if line.token_ids is not None else self._own_tokens(line)
        self.counted &= own > 0
        if line.token_ids is None:
            self.all_ids = False
            self._tree.add_alone(max(1, own))
        else:
            self._tree.add(as_token_ids(line.token_ids), behind=line.after if line.continues else None)
        self.output_tokens.append(line.output_tokens)
        self._whole.append(line.prompt_tokens)
        if line.offset_s is not None:
            self.offsets_s.append(line.offset_s)
        self._after.append(NOBODY if line.after is None else line.after)
        self._delays_s.append(line.delay_s)
        self._continues.append(line.continues)
        self._session_ids.append(line.session_id or "")
        self._turns.append(0 if line.turn is None else line.turn)

    def _own_tokens(self, line: _Line) -> int:
        """Of text and messages: as counted when they were saved, 0 where nobody did."""
        if not (line.continues and line.after is not None and line.prompt_tokens):
            return line.prompt_tokens
        return line.prompt_tokens - self._whole[line.after] - self.output_tokens[line.after]

    def _check(self, number: int, line: _Line, place: str) -> None:
        given = [line.token_ids, line.text, line.messages]
        wrong = ""
        if sum(content is not None for content in given) != 1 or not any(given):
            wrong = 'one of "token_ids", "text" and "messages" must be there, and hold something'
        elif line.output_tokens < 1 or line.prompt_tokens < 0:
            wrong = "lengths must be at least 1"
        elif line.token_ids and not 0 <= min(line.token_ids) <= max(line.token_ids) <= _MAX_TOKEN:
            wrong = "token ids must lie in 0 … 2³¹ - 1"
        elif line.after is not None and not 0 <= line.after < number:
            wrong = f'"after" must name an earlier request, 0 … {number - 1}, not {line.after}'
        elif line.continues and line.after is None:
            wrong = 'what "continues" another must say which one it is "after"'
        elif line.delay_s < 0 or (line.offset_s is not None and line.offset_s < 0):
            wrong = "times must not be negative"
        elif (line.offset_s is not None) != (len(self.offsets_s) == number) and number:
            wrong = '"offset_s" must be in all lines, or in none'
        if wrong:
            raise ConfigError(f"{place}: {wrong}")

    def sketches(self) -> Sketches:
        starts, keys, sizes = self._tree.pieces()
        columns: Mapping[str, Any] = {}
        if any(self._session_ids) or any(place != NOBODY for place in self._after):
            columns = {
                "after": _ints(self._after),
                "delays_s": np.asarray(self._delays_s, np.float64),
                "continues": np.asarray(self._continues, np.bool_),
                "session_ids": self._session_ids if any(self._session_ids) else None,
                "turns": _ints(self._turns),
            }
        offsets = np.asarray(self.offsets_s, np.float64) if self.offsets_s else None
        return Sketches(starts, keys, sizes, _ints(self.output_tokens), offsets_s=offsets, **columns)


def _ints(column: array[int]) -> IntArray:
    return np.asarray(column, np.int64)
