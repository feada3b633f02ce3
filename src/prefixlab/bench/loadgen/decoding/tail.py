"""The records of one worker's capture, as they can be made while it is still being written.

Owns the order of reading: an answer waits until the clocks have been sampled after it, so that a step of the
wall clock inside it is known. Writes nothing.

Invariant: every whole answer in the file is yielded once, `skip`ped ones apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from prefixlab.bench.loadgen import capture
from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.capture import Answer, ClockSample, End
from prefixlab.bench.loadgen.decoding.clock import StampClock
from prefixlab.bench.loadgen.decoding.decode import AnswerDecoder
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.records.record import Record


class CaptureTail:
    """See the module.

    Args:
        skip: ids of requests whose records exist already.

    Attributes:
        ended: the capture is whole, and all of it was yielded.
    """

    def __init__(self, folder: Path, worker: int, job: Job, *, skip: Container[str] = ()) -> None:
        self.ended = False
        self._folder = folder
        self._worker = worker
        self._job = job
        self._skip = skip
        self._templates: Sequence[Record] = ()
        self._clock = StampClock()
        self._decoder: AnswerDecoder | None = None
        self._file: BinaryIO | None = None
        self._waiting: deque[Answer] = deque()

    def records(self, *, last_call: bool = False) -> Iterator[Record]:
        """Those that have become ready; call again for more.

        Args:
            last_call: nobody writes any more, so nothing need be waited for.

        Raises:
            ConfigError: the file is no capture.
        """
        if self._file is None and not self._open():
            return
        assert self._file is not None
        whole = False
        for frame in capture.read_frames(self._file):
            if isinstance(frame, Answer):
                self._waiting.append(frame)
            elif isinstance(frame, ClockSample):
                self._clock.add(frame)
                yield from self._ready(everything=False)
            else:
                whole = isinstance(frame, End)
        if whole or last_call:
            yield from self._ready(everything=True)
        self.ended = self.ended or whole

    @property
    def health(self) -> ClientHealth:
        """What the capture tells about the client, so far: the decoder's half."""
        health = ClientHealth(num_workers=0) if self._decoder is None else self._decoder.health
        health.num_clock_steps = self._clock.num_steps
        health.clock_drift_ppm = self._clock.drift_ppm
        return health

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> bool:
        """Whether the capture is there: its worker makes it in its own time."""
        start_ns = jobs.read_start(self._folder)
        path = jobs.capture_path(self._folder, self._worker)
        if start_ns is None or not path.exists():
            return False
        file = path.open("rb")
        if not capture.check_magic(file):
            file.close()
            return False
        self._file = file
        self._templates = jobs.read_templates(self._folder)
        self._decoder = AnswerDecoder(self._job, self._worker, start_ns, self._clock)
        return True

    def _ready(self, *, everything: bool) -> Iterator[Record]:
        assert self._decoder is not None
        while self._waiting and (everything or self._clock.covers(self._waiting[0].ended_ns)):
            answer = self._waiting.popleft()
            template = self._templates[answer.index]
            if template.request_id not in self._skip:
                yield self._decoder.decode(answer, template)
