"""Hand-made answers, made into records."""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.loadgen.capture import NEVER, Answer, ClockSample, Ending
from prefixlab.bench.loadgen.decoding.clock import StampClock
from prefixlab.bench.loadgen.decoding.decode import FAILURES, AnswerDecoder
from prefixlab.bench.loadgen.job import Job
from prefixlab.bench.records import line
from prefixlab.bench.records.record import Failure, Outcome, Record

START_NS = 5_000_000_000
SENT_NS = START_NS + 1_000_000
WALL_NS = 1_700_000_000_000_000_000
"""The wall clock's lead over the monotonic one."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


def event(text: str = "x", *, reason: str | None = None, total: int | None = None, **delta: Any) -> bytes:
    """Of chat."""
    data: dict[str, Any] = {"choices": [{"delta": delta or {"content": text}, "finish_reason": reason}]}
    if total is not None:
        data["usage"] = {"prompt_tokens": 7, "completion_tokens": total}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


def answer(
    *reads: bytes, ending: Ending = Ending.COMPLETE, kernel: bool = False, lag_ns: int = 0, **fields: Any
) -> Answer:
    """The reads, 1 ms apart, the first 10 ms after the request was sent."""
    at = [SENT_NS + 10_000_000 + 1_000_000 * place for place in range(len(reads))]
    process = [time + lag_ns for time in at]
    known: dict[str, Any] = {
        "index": 0,
        "ending": ending,
        "intended_ns": START_NS,
        "sent_ns": SENT_NS,
        "ended_ns": process[-1] + 1000 if reads else SENT_NS + 1000,
        "kernel_ns": array("q", [time + WALL_NS if kernel else 0 for time in at]),
        "process_ns": array("q", process),
        "lengths": array("I", map(len, reads)),
        "pieces": reads,
    }
    return Answer(**(known | fields))


def decoder(dialect: str = "chat", clock: StampClock | None = None, **job: Any) -> AnswerDecoder:
    if clock is None:
        clock = StampClock()
        clock.add(ClockSample(START_NS, WALL_NS, 100))
        clock.add(ClockSample(START_NS + 2_000_000_000, WALL_NS, 100))
    fields = {"host": "server", "port": 80, "path": "/v1/chat/completions"} | job
    return AnswerDecoder(Job(dialect=dialect, **fields), 3, START_NS, clock)


def record_of(what: Answer, **how: Any) -> Record:
    template = Record("r", Outcome.UNSENT, 0.0, planned_output_tokens=4, session_id="s", turn=2)
    record = decoder(**how).decode(what, template)
    record.check()
    assert line.decode(line.encode(record)).outcome is record.outcome
    return record


def in_ms(times_s: Sequence[float]) -> list[float]:
    return [round(time_s * 1e3, 6) for time_s in times_s]


WHOLE = [
    HEAD,
    *(chunk(event(total=i)) for i in (1, 2)),
    chunk(event(reason="stop", total=3)),
    chunk(DONE) + LAST,
]


def test_each_event_arrived_with_the_read_that_ended_it() -> None:
    record = record_of(answer(*WHOLE))
    assert record.outcome is Outcome.OK
    assert in_ms([record.sent_s or 0, record.first_byte_s or 0]) == [1, 11]
    assert in_ms(record.arrivals_s) == [12, 13, 14]
    assert record.arrival_counts == (1, 1, 1)
    assert record.last_s == pytest.approx(0.015)
    assert (record.num_prompt_tokens, record.finish_reason, record.num_merged_reads) == (7, "stop", 0)
    assert (record.client, record.segment, record.session_id, record.turn) == (3, 0, "s", 2)


def test_an_event_in_two_reads_arrived_with_the_second() -> None:
    first, second = chunk(event(total=1)), chunk(event(total=2))
    record = record_of(answer(HEAD, first[:30], first[30:] + second[:20], second[20:], chunk(DONE) + LAST))
    assert in_ms(record.arrivals_s) == [13, 14]


def test_several_events_in_a_read_are_one_arrival_and_chunks_in_a_read_are_merged() -> None:
    one, two = event(total=1), event(total=2)
    merged = record_of(answer(HEAD, chunk(one) + chunk(two), chunk(DONE) + LAST))
    assert (merged.arrival_counts, merged.num_merged_reads) == ((2,), 1)
    bundled = record_of(answer(HEAD, chunk(one + two), chunk(DONE) + LAST))
    assert (bundled.arrival_counts, bundled.num_merged_reads) == ((2,), 0)
    many = record_of(answer(HEAD, chunk(event(total=5)), chunk(DONE) + LAST))
    assert (many.arrival_counts, many.num_merged_reads) == ((5,), 0)


def test_what_follows_the_last_token_merges_with_nothing() -> None:
    record = record_of(answer(HEAD, chunk(event(total=1)), chunk(event(total=2)) + chunk(DONE) + LAST))
    assert (record.arrival_counts, record.num_merged_reads) == ((1, 1), 0)


def test_without_chunks_several_events_in_a_read_count_as_merged() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    record = record_of(answer(head, event(total=1) + event(total=2), DONE))
    assert (record.outcome, record.arrival_counts, record.num_merged_reads) == (Outcome.OK, (2,), 1)


def test_connect_times_stand_apart_and_none_is_a_connection_used_again() -> None:
    opened = record_of(answer(*WHOLE, connect_started_ns=START_NS + 2000, connected_ns=START_NS + 9000))
    assert (opened.connect_started_s, opened.connected_s) == (pytest.approx(2e-6), pytest.approx(9e-6))
    assert record_of(answer(*WHOLE)).connect_started_s is None


# Stamps. ------------------------------------------------------------------------------------------------


def test_kernel_stamps_are_right_however_late_the_process_reads() -> None:
    made = decoder()
    record = made.decode(answer(*WHOLE, kernel=True, lag_ns=400_000), Record("r", Outcome.UNSENT, 0.0))
    assert in_ms(record.arrivals_s) == [12, 13, 14]
    assert in_ms([record.last_s or 0]) == [15]
    assert record.kernel_stamps
    assert made.health.num_reads == len(WHOLE)
    assert made.health.read_lag_s.quantile(0.5) == pytest.approx(400e-6, rel=0.01)


def test_without_kernel_stamps_the_process_says_when() -> None:
    record = record_of(answer(*WHOLE, lag_ns=400_000))
    assert in_ms(record.arrivals_s) == [12.4, 13.4, 14.4]
    assert not record.kernel_stamps


def test_a_read_the_kernel_did_not_stamp_is_stamped_by_the_process() -> None:
    what = answer(*WHOLE, kernel=True, lag_ns=400_000)
    what.kernel_ns[2] = 0
    record = record_of(what)
    assert in_ms(record.arrivals_s) == [12, 13.4, 14]
    assert not record.kernel_stamps


def test_stamps_that_contradict_the_process_give_way_to_it() -> None:
    what = answer(*WHOLE, kernel=True)
    what.kernel_ns[0] -= 60_000_000  # before the request was sent
    what.kernel_ns[1] += 700_000  # after it was read
    what.kernel_ns[3] -= 5_000_000  # before the read before it
    record = record_of(what)
    assert in_ms([record.first_byte_s or 0]) == [1]
    assert in_ms(record.arrivals_s) == [12, 13]
    assert record.arrival_counts == (1, 2), (
        "the last is held back to the one before it: one stamp, one arrival"
    )


def test_the_offset_of_the_clocks_is_interpolated() -> None:
    clock = StampClock()
    clock.add(ClockSample(START_NS, WALL_NS, 100))
    clock.add(ClockSample(START_NS + 2_000_000_000, WALL_NS + 800_000, 100))  # 400 ppm
    assert clock.drift_ppm == pytest.approx(400)
    what = answer(*WHOLE, kernel=True, lag_ns=400_000)
    arrivals = record_of(what, clock=clock).arrivals_s
    assert in_ms(arrivals) == pytest.approx([12 - 0.0048, 13 - 0.0052, 14 - 0.0056], abs=1e-5)


def test_a_day_of_clock_samples_is_as_quick_to_convert_by_as_an_hour() -> None:
    clock = StampClock()
    for tick in range(20 * 60):
        clock.add(ClockSample(START_NS + tick * 50_000_000, WALL_NS + tick % 7, 100))
    assert len(clock._kept) == 60
    assert clock.num_steps == 0
    assert record_of(answer(*WHOLE, kernel=True), clock=clock).kernel_stamps


@pytest.mark.parametrize("step_ns", [-1_000_000_000, -70_000, 70_000, 1_000_000_000])
def test_around_a_step_of_the_wall_clock_the_process_stamps_serve(step_ns: int) -> None:
    clock = StampClock()
    clock.add(ClockSample(START_NS, WALL_NS, 100))
    clock.add(ClockSample(SENT_NS + 10_500_000, WALL_NS, 100))
    clock.add(ClockSample(SENT_NS + 12_500_000, WALL_NS + step_ns, 100))
    what = answer(*WHOLE, kernel=True, lag_ns=300_000)
    for place in (2, 3, 4):  # the clock stepped between the reads 1 and 2
        what.kernel_ns[place] += step_ns
    made = decoder(clock=clock)
    record = made.decode(what, Record("r", Outcome.UNSENT, 0.0))
    assert in_ms([record.first_byte_s or 0, *record.arrivals_s]) == [11, 12.3, 13.3, 14]
    assert clock.num_steps == 1
    assert not record.kernel_stamps


def test_drift_is_reported_and_a_wide_sample_is_neither_a_step_nor_drift() -> None:
    clock = StampClock()
    for second in range(4):
        clock.add(ClockSample(second * 1_000_000_000, WALL_NS + second * 2000, 100))
    clock.add(ClockSample(3_500_000_000, WALL_NS + 3_000_000, 6_000_000))
    clock.add(ClockSample(4_000_000_000, WALL_NS + 8000, 100))
    assert clock.num_steps == 0
    assert clock.drift_ppm == pytest.approx(2.0)
    assert StampClock().drift_ppm is None


def test_a_stamp_is_sure_once_the_clocks_were_sampled_after_it() -> None:
    clock = StampClock()
    assert not clock.covers(5)
    clock.add(ClockSample(5, WALL_NS, 100))
    assert clock.covers(5) and not clock.covers(6)


# What servers do. ----------------------------------------------------------------------------------------


def test_reasoning_ends_ttft_and_is_counted_apart() -> None:
    thought = event(reasoning_content="hm", total=2)
    reads = [
        HEAD,
        chunk(event(role="assistant", content="")),
        chunk(thought),
        chunk(event(total=3, reason="stop")),
    ]
    record = record_of(answer(*reads, chunk(DONE) + LAST))
    assert in_ms(record.arrivals_s) == [13, 14]
    assert in_ms([record.first_content_s or 0]) == [14]
    assert (record.num_output_tokens, record.num_reasoning_tokens) == (3, 2)


@pytest.mark.parametrize(
    "stream", [b"data:%s\r\n\r\n: ping\r\n\r\ndata:[DONE]\r\n\r\n", b": hello\n\ndata: %s\n\n"]
)
def test_other_spellings_of_a_stream_are_read(stream: bytes) -> None:
    body = stream % event(total=1, reason="stop").removeprefix(b"data: ").strip()
    record = record_of(answer(HEAD + chunk(body) + LAST))
    assert (record.outcome, record.num_output_tokens) == (Outcome.OK, 1)


@pytest.mark.parametrize("end", [b"data: [DONE]\n", b"data: [DONE]", event(total=2, reason="stop").strip()])
def test_a_last_event_without_its_blank_line_is_an_event(end: bytes) -> None:
    record = record_of(answer(HEAD, chunk(event(total=2)), chunk(end) + LAST))
    assert (record.outcome, record.num_output_tokens) == (Outcome.OK, 2)


def test_an_answer_that_was_not_streamed_arrived_at_once() -> None:
    body = json.dumps(
        {
            "choices": [{"message": {"content": "abc"}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 3, "prompt_tokens": 2},
        },
        indent=1,
    ).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    record = record_of(answer(head, body[:9], body[9:]))
    assert (record.outcome, record.arrival_counts, record.finish_reason) == (Outcome.OK, (3,), "stop")
    assert in_ms(record.arrivals_s) == [13]


def http(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("what", "failure", "words"),
    [
        (answer(http(b"503 Busy", b'{"error": "queue is full"}')), Failure.HTTP_STATUS, "HTTP 503 from /v1"),
        (answer(http(b"404 No", b"not here")[:-3], ending=Ending.RESET), Failure.HTTP_STATUS, ": not h"),
        (
            answer(HEAD, chunk(b'data: {"error": {"message": "boom"}}\n\n') + LAST),
            Failure.SERVER_ERROR,
            "boom",
        ),
        (
            answer(HEAD, chunk(b'data: {"error": "boom"}\n\n'), ending=Ending.RESET),
            Failure.SERVER_ERROR,
            "boom",
        ),
        (answer(HEAD, chunk(event(reason="abort")) + LAST), Failure.SERVER_ERROR, "gave up"),
        (answer(HEAD, chunk(b"data: {not json\n\n") + LAST), Failure.GARBAGE, "not JSON: {not json"),
        (answer(HEAD, chunk(b"<html>hello</html>") + LAST), Failure.TRUNCATED, "inside an event: <html>"),
        (
            answer(HEAD, chunk(b"<html>hello</html>\n\n") + LAST),
            Failure.GARBAGE,
            "not a stream of events: <html>",
        ),
        (answer(http(b"200 OK", b'{"text": "x"}')), Failure.GARBAGE, "no choices"),
        (answer(HEAD, chunk(event(total=1)), LAST), Failure.TRUNCATED, "without a finish reason"),
        (answer(HEAD, LAST), Failure.TRUNCATED, "without a finish reason"),
        (answer(HEAD, chunk(event(reason="stop")[:-9]) + LAST), Failure.TRUNCATED, "inside an event"),
        (answer(http(b"200 OK", b"")), Failure.TRUNCATED, "without a finish reason"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named_in_the_servers_words(
    what: Answer, failure: Failure, words: str
) -> None:
    record = record_of(what)
    assert (record.outcome, record.failure) == (Outcome.FAILED, failure)
    assert words in (record.error or "")
    assert (record.http_status is not None) == (failure is Failure.HTTP_STATUS)


@pytest.mark.parametrize("ending", FAILURES)
def test_every_way_of_ending_badly_has_its_name_and_keeps_what_came(ending: Ending) -> None:
    record = record_of(answer(*WHOLE[:3], ending=ending, detail="as the system said"))
    assert (record.outcome, record.failure) == (Outcome.FAILED, FAILURES[ending][0])
    assert "(http://server:80/v1/chat/completions): as the system said" in (record.error or "")
    assert record.arrival_counts == (1, 1)


def test_all_endings_are_known() -> None:
    assert set(Ending) == {*FAILURES, Ending.COMPLETE, Ending.CANCELLED, Ending.UNSENT}


def test_a_count_far_above_what_was_asked_for_is_garbage_and_costs_no_memory() -> None:
    absurd = record_of(
        answer(HEAD, chunk(event(total=1)), chunk(event(total=400_000_000)), chunk(DONE) + LAST)
    )
    assert (absurd.outcome, absurd.failure) == (Outcome.FAILED, Failure.GARBAGE)
    assert absurd.error is not None
    assert "counts 400,000,000 output tokens where 4 were asked for" in absurd.error
    assert '"completion_tokens": 400000000' in absurd.error
    assert absurd.num_output_tokens == 1
    generous = record_of(answer(HEAD, chunk(event(reason="stop", total=1040)), chunk(DONE) + LAST))
    assert (generous.outcome, generous.num_output_tokens) == (Outcome.OK, 1040)


def test_a_request_that_found_no_connection_was_not_sent() -> None:
    record = record_of(answer(ending=Ending.CONNECT, sent_ns=NEVER, connect_started_ns=START_NS + 5))
    assert (record.sent_s, record.last_s, record.failure) == (None, None, Failure.CONNECT)


def test_a_cancelled_request_keeps_its_tokens_and_one_that_was_never_sent_is_unsent() -> None:
    cancelled = record_of(answer(*WHOLE[:3], ending=Ending.CANCELLED))
    assert (cancelled.outcome, cancelled.num_output_tokens, cancelled.error) == (Outcome.CANCELLED, 2, None)
    for ending in (Ending.CANCELLED, Ending.UNSENT):
        unsent = record_of(answer(ending=ending, sent_ns=NEVER, intended_ns=START_NS + 3_000_000))
        assert (unsent.outcome, unsent.intended_s, unsent.last_s) == (Outcome.UNSENT, 0.003, None)
    assert record_of(answer(ending=Ending.UNSENT, sent_ns=NEVER, intended_ns=NEVER)).intended_s == 0.0


# For any bytes. ------------------------------------------------------------------------------------------

BODIES = [
    b"".join(WHOLE),
    HEAD + chunk(event(total=1) + event(total=3)) + chunk(b": ping\n\n") + chunk(event(reason="stop")) + LAST,
    HEAD + chunk((event() * 2 + DONE).replace(b"\n", b"\r\n")) + LAST,
    HEAD + chunk(event()) + chunk(b'data: {"error": 1}\n\n') + LAST,
    HEAD + chunk(event()) + LAST,
    http(b"500 Oh", b"no"),
    b"HTTP/1.1 200 OK\r\n\r\n" + event(total=2, reason="stop"),
    http(b"200 OK", b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}'),
]


@given(st.sampled_from(BODIES), st.lists(st.integers(0, 1 << 12), max_size=10), st.sampled_from(Ending))
def test_a_record_does_not_depend_on_how_the_bytes_were_cut(
    raw: bytes, cuts: list[int], ending: Ending
) -> None:
    edges = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})
    reads = [raw[low:high] for low, high in itertools.pairwise(edges)]
    told_apart = {
        "first_byte_s",
        "first_content_s",
        "arrivals_s",
        "arrival_counts",
        "last_s",
        "num_merged_reads",
    }

    def facts(record: Record) -> dict[str, Any]:
        names = set(Record.__slots__) - told_apart
        return {name: getattr(record, name) for name in names} | {"tokens": record.num_output_tokens}

    assert facts(record_of(answer(*reads, ending=ending))) == facts(record_of(answer(raw, ending=ending)))


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([*WHOLE, DONE, event(), b"\r\n"])), max_size=8
    ),
    st.sampled_from(["native", "completions", "chat"]),
    st.sampled_from(Ending),
    st.booleans(),
)
def test_whatever_comes_becomes_a_record(
    reads: list[bytes], dialect: str, ending: Ending, with_head: bool
) -> None:
    reads = [read for read in ([HEAD, *reads] if with_head else reads) if read]
    record_of(answer(*reads, ending=ending, kernel=True), dialect=dialect)


def test_the_address_of_an_ipv6_host_is_written_as_in_a_url() -> None:
    record = record_of(answer(ending=Ending.CONNECT, sent_ns=NEVER), host="::1", tls=True)
    assert "(https://[::1]:80/" in (record.error or "")
