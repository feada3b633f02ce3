from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.targets.sse import SseParser

STREAM = (
    b'data: {"a": 1}\n\n: a comment\nevent: token\ndata:{"b": 2}\r\n\r\n'
    b"data: two\ndata: lines\n\ndata: [DONE]\n\n"
)
PAYLOADS = [b'{"a": 1}', b'{"b": 2}', b"two\nlines", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_payloads_do_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    parser = SseParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    got = [payload for low, high in itertools.pairwise(edges) for payload in parser.feed(STREAM[low:high])]
    assert got == PAYLOADS
    assert not parser.unfinished


def test_what_is_left_after_the_last_event_is_kept_for_the_error_message() -> None:
    parser = SseParser()
    assert parser.feed(b'data: {"a"') == []
    assert parser.unfinished == b'data: {"a"'
    parser = SseParser()
    parser.feed(b"data: whole line\n")
    assert parser.unfinished.startswith(b"whole line")
