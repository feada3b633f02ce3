"""The least a client in Python can do: read, stamp, keep. The ceiling of `bench_client.py`.

    python benchmarks/truth/bare_loop.py PORT NUM_PROMPTS CONCURRENCY OUTPUT_LEN RESULT

Knows one server (`server.c`) and no error: connects everything before it begins, sends one request whatever
is asked, has no time-outs, no retries, no health, no capture. What remains is `epoll`, `recvmsg` with the
kernel's stamp, and three appends. Writes a result with the keys of `bench serve` that the benchmark compares.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import struct
import sys
import time
from array import array
from pathlib import Path

import numpy as np

SO_TIMESTAMPNS = 35
END = b"0\r\n\r\n"


class Stream:
    __slots__ = ("kernel_ns", "pieces", "process_ns", "recvmsg", "sent_ns", "sock")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.recvmsg = self.sock.recvmsg

    def send(self, request: bytes) -> None:
        self.pieces: list[bytes] = []
        self.kernel_ns = array("q")
        self.process_ns = array("q")
        self.sent_ns = time.monotonic_ns()
        self.sock.send(request)


def wall_offset_ns() -> int:
    """Wall clock − monotonic clock, from the narrowest of a few brackets."""
    brackets = []
    for _ in range(9):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        brackets.append((after - before, wall - (before + after) // 2))
    return min(brackets)[1]


def main(port: int, num_prompts: int, concurrency: int, output_len: int, result: Path) -> None:
    body = json.dumps({"prompt": [1, 2, 3], "max_tokens": output_len, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    request = head + body
    epoll = select.epoll()
    streams: dict[int, Stream] = {}
    for _ in range(min(concurrency, num_prompts)):
        stream = Stream(port)
        streams[stream.sock.fileno()] = stream
        epoll.register(stream.sock.fileno(), select.EPOLLIN)
    finished: list[tuple[int, array[int], array[int], list[bytes]]] = []
    unpack, monotonic_ns = struct.Struct("@ll").unpack, time.monotonic_ns
    gc.disable()
    began_s, cpu_s = time.monotonic(), time.process_time()
    for stream in streams.values():
        stream.send(request)
    num_left = num_prompts - len(streams)
    while len(finished) < num_prompts:
        for fd, _ in epoll.poll(-1, 64):
            stream = streams[fd]
            data, ancillary, _, _ = stream.recvmsg(16384, 40)
            now_ns = monotonic_ns()
            seconds, nanoseconds = unpack(ancillary[0][2])
            stream.kernel_ns.append(seconds * 1_000_000_000 + nanoseconds)
            stream.process_ns.append(now_ns)
            stream.pieces.append(data)
            if data.endswith(END):
                finished.append((stream.sent_ns, stream.kernel_ns, stream.process_ns, stream.pieces))
                if num_left:
                    num_left -= 1
                    stream.send(request)
    wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s

    offset_ns = wall_offset_ns()
    ttft_ms, itl_ms, lag_ms, num_reads, num_merged = [], [], [], 0, 0
    for sent_ns, kernel_ns, process_ns, pieces in finished:
        # As any client must: a read with several tokens is that many arrivals at one time, the head and the
        # end are none.
        counts = np.array([piece.count(b'"index":0') for piece in pieces])
        arrived_ns = np.array(kernel_ns) - offset_ns
        lag_ms.append((np.array(process_ns) - arrived_ns) / 1e6)
        tokens_ns = np.repeat(arrived_ns, counts)
        ttft_ms.append((tokens_ns[0] - sent_ns) / 1e6)
        itl_ms.append(np.diff(tokens_ns) / 1e6)
        num_reads += int((counts > 0).sum())
        num_merged += int((counts > 1).sum())
    figures: dict[str, object] = {}
    for name, values in (("ttft", np.array(ttft_ms)), ("itl", np.concatenate(itl_ms))):
        figures[f"mean_{name}_ms"] = float(values.mean())
        figures[f"median_{name}_ms"] = float(np.median(values))
        figures[f"p99_{name}_ms"] = float(np.percentile(values, 99))
    figures["client"] = {
        "reads": num_reads,
        "merged_reads": num_merged,
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "read_lag_p99_ms": float(np.percentile(np.concatenate(lag_ms), 99)),
    }
    result.write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), Path(sys.argv[5]))
