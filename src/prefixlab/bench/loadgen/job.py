"""The job folder: a plan laid down as bytes, so that a worker sends from memory maps and computes nothing.

Owns the files through which driver, worker and decoder talk, all in one folder:

    job.json            Job: where to connect, time-outs, pacing; the same for every worker
    plan.bin            the requests as they go on the wire, HTTP head and body, one after another
    plan.npy            one row per request: where its bytes are, and when it is due (PLAN_ROW)
    templates.bin       one UNSENT record per request, for the decoder (length-prefixed msgpack)
    capture-{w}.bin     what worker w saw (capture.py)
    progress-{w}.bin    worker w's counters, shared memory (progress.py)
    records-{w}.jsonl   worker w's records, written by its decoder

Worker w of W sends the rows i with i % W == w. Protocol of a worker process (`worker.py`, one argument each:
folder, w): it prints `ready`, waits for `go <start_ns>` (monotonic) on stdin, runs, prints its health as one
JSON line, and exits 0. SIGTERM makes it cancel what is in flight, mark the rest unsent, and end the same way.

Invariant: the folder holds all that is needed to send the rest of the plan after a crash.
"""

from __future__ import annotations

import msgspec
import numpy as np

PLAN_ROW = np.dtype([("start", "<u8"), ("length", "<u4"), ("max_new_tokens", "<u4"), ("due_ns", "<i8")])


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must know. Times are nanoseconds; None is "no limit".

    Attributes:
        host, port: where to connect; `host` may be a name or an address.
        tls: speak TLS; `verify_tls` checks the certificate against `tls_name`.
        dialect: name of the API, as `targets.dialects.DIALECTS` knows it, for the decoder.
        reuse_connections: an answered request's connection serves the next one.
        kernel_stamps: ask the kernel for arrival stamps where it has them.
        max_concurrency: per worker, one entry each; None: no limit.
        segment: number of this stretch of a resumed run, copied into every record.
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
    segment: int = 0
