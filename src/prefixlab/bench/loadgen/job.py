"""The job folder: a plan laid down as bytes, so that a worker sends from memory maps and computes nothing.

Owns the files through which driver, worker and decoder talk, all in one folder:

    job.json            Job: where to connect, time-outs, pacing; the same for every worker
    plan.bin            the requests as they go on the wire, HTTP head and body, one after another; behind one
                        that is continued, and in place of one that continues another, the request itself
    plan.npy            one row per request: where its bytes are, when it is due, whom it waits for (PLAN_ROW)
    plan.writer         what a worker needs to write continuing requests itself; only where there are any
    templates.bin       one UNSENT record per request, for the decoder (length-prefixed msgpack)
    start.json          the moment the run began, on the monotonic clock; written last, as the workers go
    capture-{w}.bin     what worker w saw (capture.py)
    progress-{w}.bin    worker w's counters, shared memory (progress.py)
    records-{w}.jsonl   worker w's records, written by its decoder

Sessions are dealt to workers whole, as slots are (`rows_of`). Protocol of a worker process (`worker.py`, one
argument each: folder, w): it prints `ready`, waits for `go <start_ns>` (monotonic) on stdin, runs, prints its
health as one JSON line, and exits 0. SIGTERM makes it cancel what is in flight, mark the rest unsent, and end
the same way, with exit code 4. One that fails in mid-run leaves a capture without an end, and another exit
code.

Job, start and records stay when the run is over (`tidy`).

Invariant: until then, what a crash leaves in the folder is enough for a record of every answer that came.
"""

from __future__ import annotations

import io
import mmap
import struct
import tempfile
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, overload

import msgspec
import numpy as np
import numpy.typing as npt

from prefixlab.bench.loadgen.outgoing import WriterState
from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest

PLAN_ROW = np.dtype(
    [
        ("start", "<u8"),
        ("length", "<u4"),
        ("request_length", "<u4"),
        ("max_new_tokens", "<u4"),
        ("after", "<u4"),
        ("due_ns", "<i8"),
        ("delay_ns", "<i8"),
        ("continues", "?"),
    ]
)
"""From `start` on, `length` bytes for the wire (0 where it continues another), then `request_length` of the
request itself. `after`: 1 + the row waited for; 0 where none."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must know. Times are nanoseconds; None is "no limit".

    Attributes:
        host, port: where to connect; `host` may be a name or an address.
        tls: speak TLS; `verify_tls` checks the certificate against `tls_name`.
        dialect: name of the API, as `targets.dialects.DIALECTS` knows it, for the decoder.
        reuse_connections: an answered request's connection serves the next one.
        kernel_stamps: ask the kernel for arrival stamps where it has them.
        max_concurrency: per worker, one entry each; None: no limit.
    """

    host: str
    port: int
    dialect: str
    path: str
    tls: bool = False
    verify_tls: bool = True
    tls_name: str | None = None
    num_workers: int = 1
    open_loop: bool = True
    max_concurrency: tuple[int, ...] | None = None
    stop_after_ns: int | None = None
    retries: int = 0
    retry_wait_ns: int = 100_000_000
    connect_timeout_ns: int = 10_000_000_000
    read_timeout_ns: int = 1_200_000_000_000
    total_timeout_ns: int | None = None
    reuse_connections: bool = True
    kernel_stamps: bool = True


def roots_of(after: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row that each one's session begins with, shape (n,).

    Args:
        after: the earlier row that each waits for, -1 where none.
    """
    roots = np.where(after < 0, np.arange(len(after)), after)
    while True:
        further = roots[roots]
        if np.array_equal(further, roots):
            return roots
        roots = further


def rows_of(job: Job, worker: int, plan: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The rows of `plan` (PLAN_ROW) that `worker` sends, ascending: whole sessions, as often in a turn of all
    workers as it has slots."""
    after = plan["after"].astype(np.int64) - 1
    begins = after < 0
    num_sessions = int(begins.sum())
    if job.max_concurrency is None:
        owners = np.arange(num_sessions) % job.num_workers
    else:
        slots = np.array(job.max_concurrency)
        number = np.concatenate([np.arange(count) for count in slots.tolist()])
        owners = np.repeat(np.arange(len(slots)), slots)[np.argsort(number, kind="stable")]
        owners = np.resize(owners, num_sessions)
    if num_sessions == len(plan):
        return np.flatnonzero(owners == worker)
    session = np.cumsum(begins) - 1
    return np.flatnonzero(owners[session[roots_of(after)]] == worker)


PLAN_BYTES, PLAN_ROWS, TEMPLATES = "plan.bin", "plan.npy", "templates.bin"
TOLD_TO_END = 4
"""Exit code of a worker that ended in order, but before its time."""
_JOB, _START, _WRITER = "job.json", "start.json", "plan.writer"
_PIECE_BYTES = 32 << 20
_LENGTH = struct.Struct("<I")


def capture_path(folder: Path, worker: int) -> Path:
    return folder / f"capture-{worker}.bin"


def progress_path(folder: Path, worker: int) -> Path:
    return folder / f"progress-{worker}.bin"


def records_path(folder: Path, worker: int) -> Path:
    return folder / f"records-{worker}.jsonl"


def tidy(folder: Path) -> None:
    """Remove what nobody needs once every answer has its line. The plan may hold a key."""
    # Captures first: where a kill leaves one, recovery needs the templates.
    for pattern in ("capture-*.bin", "progress-*.bin", "plan.*", TEMPLATES, "*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()


def forget_plan(folder: Path) -> None:
    """Remove what is sent, which recovery does not need; nothing if it has gone."""
    for path in folder.glob("plan.*"):
        path.unlink(missing_ok=True)


class Writes(Protocol):
    """`outgoing.RequestWriter`: a request as it is sent, HTTP head and body."""

    @property
    def state(self) -> WriterState: ...

    def __call__(self, request: TargetRequest, *, names_tokens: bool = False) -> bytes: ...


def write_plan(folder: Path, plan: Iterable[Planned], write: Writes) -> int:
    """Lay down plan and templates; returns how many requests. Holds one request's bytes at a time.

    Raises:
        ConfigError: a request cannot be carried, or is continued and has no `session_id`.
    """
    (folder / PLAN_BYTES).touch(0o600)  # a key may be among the headers
    with (
        (folder / PLAN_BYTES).open("wb") as file,
        (folder / TEMPLATES).open("wb") as templates,
        tempfile.TemporaryFile(dir=folder) as aside,
    ):
        bytes_of = _PlanBytes(file, aside, write)
        for planned in plan:
            bytes_of.add(planned)
            template = _encoder.encode(_Template.of(planned))
            templates.write(_LENGTH.pack(len(template)) + template)
        rows = bytes_of.finish()
    np.save(folder / PLAN_ROWS, rows)
    if rows["continues"].any():
        (folder / _WRITER).touch(0o600)
        (folder / _WRITER).write_bytes(_encoder.encode(write.state))
    return len(rows)


class _PlanBytes:
    """Lays down what is sent.

    Turns with whole prompts are put aside until the plan has been read to its end, because only then it is
    known which of them are continued: these must ask the server to name its tokens, and are needed again as
    requests. A turn that continues another is left to its worker.
    """

    def __init__(self, bodies: IO[bytes], aside: IO[bytes], write: Writes) -> None:
        self._bodies = bodies
        self._aside = aside
        self._write = write
        self._at = 0
        self._rows = [array(code) for code in ("Q", "I", "I", "I", "I", "q", "q", "b")]
        self._put_aside: list[tuple[int, int]] = []  # row, and how many bytes it takes there
        self._continued: set[int] = set()

    def add(self, planned: Planned) -> None:
        number, request = len(self._rows[0]), planned.request
        after = planned.after
        assert after is None or 0 <= after < number, f"{request.request_id} waits for no earlier request"
        row = (0, 0, 0, request.max_new_tokens, 0 if after is None else after + 1)
        times = (round(planned.offset_s * 1e9), round(planned.delay_s * 1e9), planned.continues)
        for column, value in zip(self._rows, (*row, *times), strict=True):
            column.append(value)
        if planned.continues:
            assert after is not None, f"{request.request_id} continues nothing"
            self._continued.add(after)
            self._place(number, b"", encode_request(request))
        elif planned.session_id is not None or after is not None:
            data = encode_request(request)
            self._aside.write(data)
            self._put_aside.append((number, len(data)))
        else:
            self._place(number, self._write(request))

    def finish(self) -> npt.NDArray[Any]:
        """The rows (PLAN_ROW), once all are added."""
        self._aside.seek(0)
        for number, length in self._put_aside:
            data = self._aside.read(length)
            is_continued = number in self._continued
            wire = self._write(decode_request(data), names_tokens=is_continued)
            self._place(number, wire, data if is_continued else b"")
        rows = np.empty(len(self._rows[0]), PLAN_ROW)
        for name, column in zip(PLAN_ROW.names or (), self._rows, strict=True):
            rows[name] = column
        lost = sorted(number for number in self._continued if not rows["request_length"][number])
        if lost:
            raise ConfigError(f"request {lost[0]} of the plan is continued by another and has no session_id")
        return rows

    def _place(self, number: int, wire: bytes, request: bytes = b"") -> None:
        self._bodies.write(wire + request)
        starts, lengths, request_lengths, *_ = self._rows
        starts[number], lengths[number], request_lengths[number] = self._at, len(wire), len(request)
        self._at += len(wire) + len(request)


class _Request(msgspec.Struct, array_like=True, omit_defaults=True):
    """A TargetRequest, its token ids as bytes."""

    request_id: str
    max_new_tokens: int
    temperature: float
    ignore_eos: bool
    extra_body: dict[str, Any]
    token_ids: bytes | None = None
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None


def encode_request(request: TargetRequest) -> bytes:
    ids = request.prompt_token_ids
    return _encoder.encode(
        _Request(
            request.request_id,
            request.max_new_tokens,
            request.temperature,
            request.ignore_eos,
            request.extra_body,
            None if ids is None else ids.astype("<i4").tobytes(),
            request.prompt_text,
            request.messages,
        )
    )


def decode_request(data: bytes | memoryview) -> TargetRequest:
    """What `encode_request` was given."""
    request = _request_decoder.decode(data)
    ids = request.token_ids
    return TargetRequest(
        request.request_id,
        request.max_new_tokens,
        prompt_token_ids=None if ids is None else np.frombuffer(ids, "<i4").astype(np.int32),
        prompt_text=request.text,
        messages=request.messages,
        temperature=request.temperature,
        ignore_eos=request.ignore_eos,
        extra_body=request.extra_body,
    )


def read_writer(folder: Path) -> WriterState | None:
    """How workers are to write requests; None where they write none."""
    try:
        return msgspec.msgpack.decode((folder / _WRITER).read_bytes(), type=WriterState)
    except FileNotFoundError:
        return None


def read_plan(folder: Path) -> npt.NDArray[Any]:
    """The rows (PLAN_ROW), shape (n,), mapped."""
    rows: npt.NDArray[Any] = np.load(folder / PLAN_ROWS, mmap_mode="r")
    return rows


def write_job(folder: Path, job: Job) -> None:
    """Note the job, once its plan is laid down; whole or not at all."""
    _write_whole(folder / _JOB, msgspec.json.encode(job))


def is_laid_down(folder: Path) -> bool:
    """Whether a driver came so far in `folder` that anything can have been sent."""
    return (folder / _JOB).exists()


def read_job(folder: Path) -> Job:
    """Raises ConfigError if the folder holds none."""
    try:
        return msgspec.json.decode((folder / _JOB).read_bytes(), type=Job)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{folder} is not the folder of a run: {error}") from None


def write_start(folder: Path, start_ns: int) -> None:
    """Note the start; whole or not at all."""
    _write_whole(folder / _START, msgspec.json.encode(start_ns))


def read_start(folder: Path) -> int | None:
    """The run's start, monotonic; None before it."""
    try:
        return msgspec.json.decode((folder / _START).read_bytes(), type=int)
    except FileNotFoundError:
        return None


def _write_whole(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_bytes(data)
    draft.replace(path)


class _Template(msgspec.Struct, array_like=True, omit_defaults=True):
    """What the plan knows of a request and its record repeats."""

    request_id: str
    intended_s: float
    planned_prompt_tokens: int
    planned_output_tokens: int
    num_expected_cached_tokens: int | None = None
    session_id: str | None = None
    turn: int | None = None

    @classmethod
    def of(cls, planned: Planned) -> _Template:
        record = planned.unsent(planned.offset_s)
        return cls(*(getattr(record, name) for name in cls.__struct_fields__))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Template)
_request_decoder = msgspec.msgpack.Decoder(_Request)


class Templates(Sequence[Record]):
    """The UNSENT records of a plan in its order, intended at their offsets. Decoded as they are asked for."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._starts = array("Q", _starts(data))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self._starts[index]
        (length,) = _LENGTH.unpack_from(self._data, start - _LENGTH.size)
        template = _decoder.decode(self._data[start : start + length])
        values = {name: getattr(template, name) for name in template.__struct_fields__}
        return Record(outcome=Outcome.UNSENT, **values)


def _starts(data: bytes | mmap.mmap) -> Iterator[int]:
    at, end = _LENGTH.size, len(data)
    while at <= end:
        yield at
        at += _LENGTH.unpack_from(data, at - _LENGTH.size)[0] + _LENGTH.size


def read_templates(folder: Path) -> Templates:
    return Templates(_mapped(folder / TEMPLATES))


def _mapped(path: Path) -> bytes | mmap.mmap:
    if not path.stat().st_size:
        return b""  # which cannot be mapped
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def share(folder: Path, workers: Collection[int]) -> Iterator[tuple[str, bytes]]:
    """What these workers of the job in `folder` need of it elsewhere: names of files, and pieces
    to append to them. Rows and templates keep their places; those of other workers are empty.
    """
    yield _JOB, (folder / _JOB).read_bytes()
    rows = np.array(read_plan(folder))
    job = read_job(folder)
    mine = np.zeros(len(rows), np.bool_)
    for worker in workers:
        mine[rows_of(job, worker, rows)] = True
    starts = rows["start"][mine]
    lengths = rows["length"][mine].astype(np.uint64) + rows["request_length"][mine]
    for name in ("start", "length", "request_length"):
        rows[name][~mine] = 0
    rows["start"][mine] = np.cumsum(lengths) - lengths
    file = io.BytesIO()
    np.save(file, rows)
    yield PLAN_ROWS, file.getvalue()
    if (folder / _WRITER).exists():
        yield _WRITER, (folder / _WRITER).read_bytes()
    with (folder / PLAN_BYTES).open("rb") as bodies:
        places = zip(starts.tolist(), lengths.tolist(), strict=True)
        for piece in _in_pieces(_read_at(bodies, *place) for place in places):
            yield PLAN_BYTES, piece
    for piece in _in_pieces(_kept(_mapped(folder / TEMPLATES), mine.tolist())):
        yield TEMPLATES, piece


def _kept(templates: bytes | mmap.mmap, mine: Sequence[bool]) -> Iterator[bytes]:
    for start, is_mine in zip(_starts(templates), mine, strict=True):
        (length,) = _LENGTH.unpack_from(templates, start - _LENGTH.size)
        yield templates[start - _LENGTH.size : start + length] if is_mine else _LENGTH.pack(0)


def _read_at(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _in_pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """All of it in few pieces; one, if empty, where there is nothing."""
    held, size = [], 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)
