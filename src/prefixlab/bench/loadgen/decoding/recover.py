"""Records that a run which was killed had in its captures, and nowhere else.

Owns what counts as written: a whole line. Nobody may be writing into the folder meanwhile.

Invariant: afterwards, every whole answer in the captures has exactly one line; running it again adds none.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from prefixlab.bench.loadgen import job as jobs
from prefixlab.bench.loadgen.decoding.tail import CaptureTail
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.records import line
from prefixlab.core.errors import ConfigError


def recover(folder: Path) -> int:
    """Turn the captures of a run's folder into the lines that are missing; returns how many it wrote.

    All but the records, the job and its start is removed then. Torn tails of captures and of lines, which a
    kill leaves, are passed over.

    Raises:
        ConfigError: a file in `folder` is not what its name says.
    """
    count = 0
    if jobs.is_laid_down(folder):
        job = jobs.read_job(folder)
        count = sum(recover_worker(folder, worker, job)[0] for worker in range(job.num_workers))
    jobs.tidy(folder)
    return count


def recover_worker(folder: Path, worker: int, job: Job) -> tuple[int, ClientHealth]:
    """`recover` of one worker; also what the recovered answers tell about the client's health."""
    path = jobs.records_path(folder, worker)
    written = _whole_lines(path)
    if not jobs.capture_path(folder, worker).exists():
        return 0, ClientHealth(num_workers=0)
    tail = CaptureTail(folder, worker, job, skip=written)
    count = 0
    try:
        with path.open("ab") as file:
            for record in tail.records(last_call=True):
                file.write(line.encode(record))
                count += 1
    finally:
        tail.close()
    return count, tail.health


class _Id(msgspec.Struct):
    id: str


def _whole_lines(path: Path) -> set[str]:
    """The ids of a file of lines, after cutting a torn one off its end."""
    if not path.exists():
        return set()
    ids = set()
    length = 0
    decode = msgspec.json.Decoder(_Id).decode
    with path.open("r+b") as file:
        for number, data in enumerate(file, 1):
            if not data.endswith(b"\n"):
                break
            try:
                ids.add(decode(data).id)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{path}, line {number}: not a record ({error})") from None
            length += len(data)
        file.truncate(length)
    return ids
