from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.targets.sse import split_events

STREAM = (
    b'data: {"a": 1}\n\n: a comment\nevent: token\ndata:{"b": 2}\r\n\r\n'
    b"data: two\ndata: lines\n\n\n: ping\n\ndata\n\ndata: [DONE]\n\n"
)
PAYLOADS = [b'{"a": 1}', b'{"b": 2}', b"two\nlines", b"[DONE]"]


def slow_twin(body: bytes) -> tuple[list[bytes], list[int]]:
    """Line by line, as the standard tells it."""
    payloads, ends, data, at = [], [], [], 0
    while at < len(body):
        stops = [stop for stop in (body.find(b"\n", at), body.find(b"\r", at)) if stop >= 0]
        if not stops:
            break
        stop = min(stops)
        line = body[at:stop]
        at = stop + (2 if body[stop : stop + 2] == b"\r\n" else 1)
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            payloads.append(b"\n".join(data))
            ends.append(at)
            data = []
    return payloads, ends


def test_payloads_are_the_data_of_events_that_have_any() -> None:
    assert split_events(STREAM).payloads == PAYLOADS
    assert split_events(STREAM).rest == b""


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_three_ways(line_end: bytes) -> None:
    body = b"data: one\n\n: ping\ndata: two\n\n".replace(b"\n", line_end)
    events = split_events(body)
    assert events.payloads == [b"one", b"two"]
    assert events.ends == [len(b"data: one" + 2 * line_end), len(body)]


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"data: x", b"data:y", b":c", b"id: 1", b"data: "])))
def test_splitting_at_once_agrees_with_reading_line_by_line(parts: list[bytes]) -> None:
    body = b"".join(parts)
    events = split_events(body)
    assert (events.payloads, events.ends) == slow_twin(body)


@given(st.integers(0, len(STREAM)))
def test_an_event_is_there_when_its_last_byte_is(cut: int) -> None:
    whole = split_events(STREAM)
    part = split_events(STREAM[:cut])
    num_there = sum(end <= cut for end in whole.ends)
    assert part.payloads[:num_there] == whole.payloads[:num_there]
    assert len(part.payloads) - num_there <= (STREAM[:cut].endswith(b"\r")), "a CR alone ends a line too"


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (b'data: {"a"', b'{"a"'),
        (b"data: whole line\n", b"whole line"),
        (b"data: x\n\ndat", b"dat"),
        (b"data: x\n\n: a comment", b""),
        (b"data: x\n\nid: 4\n", b""),
        (b"", b""),
    ],
)
def test_what_is_left_after_the_last_event_is_kept_for_the_error_message(body: bytes, rest: bytes) -> None:
    assert split_events(body).rest == rest
