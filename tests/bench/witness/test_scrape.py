"""The server's metrics fetched during a run: aligned with its records, never in its way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import pytest

from prefixlab.bench.loadgen.driver import Driver
from prefixlab.bench.loadgen.plan import Load
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.targets.admin import open_admin
from prefixlab.bench.targets.control import FlushAnswer, InProcessControl, OpenAIControl, ServerFacts
from prefixlab.bench.targets.dialects import NativeDialect
from prefixlab.bench.targets.several import SeveralDrivers
from prefixlab.bench.witness.scrape import MetricsScrape
from prefixlab.bench.witness.witness import Witness, watched_by
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.errors import TargetError
from tests.bench.helpers import planned


class Told:
    """A control whose metrics are what a function says."""

    def __init__(self, text: Callable[[], str | None]) -> None:
        self.metrics_text = text

    def facts(self) -> ServerFacts:
        return ServerFacts("openai")

    def flush(self) -> FlushAnswer:
        return FlushAnswer(False, "")


def rows(folder: Path, name: str) -> list[tuple[float, float]]:
    query = f"SELECT time_s, value FROM '{folder}/metrics.parquet' WHERE name = ? ORDER BY time_s"
    return duckdb.execute(query, [name]).fetchall()


def scrape(*controls: Told, interval_s: float = 0.01) -> MetricsScrape:
    servers = {f"http://server-{number}": control for number, control in enumerate(controls)}
    return MetricsScrape(servers, MonotonicClock(), interval_s)


class _Handler(BaseHTTPRequestHandler):
    """Answers /generate with one token, and counts it in /metrics as it does."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._answer(f"# HELP served\nserved_total {type(self).served}\n".encode(), "text/plain")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            type(self).served += 1
        meta = {"prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": 0, "finish_reason": None}
        body = b"data: " + json.dumps({"text": "x", "meta_info": meta}).encode() + b"\n\ndata: [DONE]\n\n"
        self._answer(body, "text/event-stream")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def counting_server() -> Iterator[str]:
    """A server whose counter steps as it takes a request."""
    handler = type("Handler", (_Handler,), {"served": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("num_workers", [None, 1])
def test_a_counter_steps_where_the_records_say_that_requests_were_answered(
    tmp_path: Path, num_workers: int | None
) -> None:
    plan = [planned("first", offset_s=0.0), planned("second", offset_s=0.5)]
    with counting_server() as url, open_admin(url) as client:
        looks = MetricsScrape({url: OpenAIControl(client, "openai")}, MonotonicClock(), 0.01)
        with watched_by([looks], tmp_path, notes := []):
            drive = SocketDriver(url, NativeDialect()).run(
                plan, Load(open_loop=True, num_workers=num_workers), folder=tmp_path
            )

    records = {record.request_id: record for record in drive.records}
    assert all(record.last_s is not None for record in records.values())
    counter, took = rows(tmp_path, "served_total"), rows(tmp_path, "scrape_duration_seconds")
    beats = [time_s for time_s, _ in took]
    assert counter[0] == (beats[0], 0.0) and beats[0] < 0.0
    for number, name in enumerate(("first", "second"), 1):
        record = records[name]
        assert record.sent_s is not None and record.last_s is not None
        stepped_s = next(time_s for time_s, value in counter if value >= number)
        after = next((time_s, took_s) for time_s, took_s in took if time_s >= stepped_s)
        before = max((time_s, took_s) for time_s, took_s in took if time_s < stepped_s)
        # The last question that knew nothing of it came before its end, the first that did after its start.
        assert before[0] - before[1] / 2 <= record.last_s
        assert after[0] + after[1] / 2 >= record.sent_s
    assert counter[-1] == (beats[-1], 2.0) and beats[-1] >= drive.duration_s
    assert all("beats left out" in note for note in notes), "on a busy machine some are"


def test_several_servers_stand_beside_each_other_each_on_its_own_drivers_axis(tmp_path: Path) -> None:
    with counting_server() as one, counting_server() as other, open_admin(one) as a, open_admin(other) as b:
        controls = {one: OpenAIControl(a, "openai"), other: OpenAIControl(b, "openai")}
        drivers: list[Driver] = [SocketDriver(url, NativeDialect()) for url in controls]
        plan = [planned(f"r{number}") for number in range(3)]
        plan = [replace(request, server=number % 2) for number, request in enumerate(plan)]
        with watched_by([MetricsScrape(controls, MonotonicClock(), 0.05)], tmp_path, []):
            SeveralDrivers(drivers).run(plan, Load(open_loop=True), folder=tmp_path)

    last = duckdb.execute(
        f"SELECT server, max(value) FROM '{tmp_path}/metrics.parquet' WHERE name = 'served_total' GROUP BY 1"
    ).fetchall()
    assert dict(last) == {one: 2.0, other: 1.0}


def test_a_server_without_metrics_is_asked_once_and_noted_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def nothing() -> None:
        asked.append(1)

    looks = scrape(Told(nothing))
    notes: list[str] = []
    for _ in range(2):
        with watched_by([looks], tmp_path, notes):
            threading.Event().wait(0.05)

    assert len(asked) == 1
    assert len(notes) == 1 and "tells no metrics" in notes[0]
    assert not (tmp_path / "metrics.parquet").exists()


def test_a_slow_server_loses_beats_and_the_run_loses_no_time(tmp_path: Path) -> None:
    def slow() -> str:
        threading.Event().wait(0.06)
        return "c 1\n"

    with watched_by([scrape(Told(slow), interval_s=0.02)], tmp_path, notes := []):
        threading.Event().wait(0.2)

    assert len(notes) == 1 and "longer than --scrape-interval 0.02" in notes[0] and "left out" in notes[0]
    assert 2 <= len(rows(tmp_path, "up")) <= 6


def test_a_server_that_never_answers_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefixlab.bench.witness.scrape.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("prefixlab.bench.witness.scrape.LAST_WAIT_S", 0.01)
    answer = threading.Event()

    def hangs() -> str:
        answer.wait(10)
        return "c 1\n"

    with watched_by([scrape(Told(hangs))], tmp_path, notes := []):
        pass
    answer.set()

    assert any("did not come within" in note for note in notes)


def test_failures_are_counted_noted_and_asked_again_ever_more_seldom(tmp_path: Path) -> None:
    texts: list[str | None] = ["c 1\n"]

    def fails_later() -> str | None:
        if texts:
            return texts.pop()
        raise TargetError("the connection was reset")

    with watched_by([scrape(Told(fails_later))], tmp_path, notes := []):
        threading.Event().wait(0.3)

    ups = [value for _, value in rows(tmp_path, "up")]
    assert ups[0] == 1.0 and set(ups[1:]) == {0.0} and len(ups) < 10
    assert len(notes) == 1 and "the connection was reset" in notes[0]


def test_without_a_folder_nobody_is_asked() -> None:
    def never() -> str:
        raise AssertionError

    with watched_by([scrape(Told(never))], None, notes := []):
        pass

    assert notes == []


def test_an_engine_in_this_process_has_no_server_to_ask() -> None:
    class Only:
        url, control = "in-process", InProcessControl(dict, lambda: True)

    looks: Witness = MetricsScrape.of(Only(), 1.0)  # type: ignore[arg-type]
    looks.start(Path())

    assert looks.stop() == []
