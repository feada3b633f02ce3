"""Whether an answer counts: the records and the next turns of sessions go by one rule."""

from __future__ import annotations

import pytest

from prefixlab.bench.loadgen.capture import Answer, Ending
from prefixlab.bench.loadgen.decoding.body import read_body
from prefixlab.bench.loadgen.decoding.events import read_reply
from prefixlab.bench.targets.dialects import NativeDialect, Reply

META = b'{"completion_tokens": 2, "finish_reason": %s}'
EVENT = b'data: {"text": "ab", "output_ids": [7, 8], "meta_info": ' + META + b"}\n\n"
WHOLE = EVENT % b'{"type": "length"}' + b"data: [DONE]\n\n"


def answer(
    body: bytes, status: bytes = b"200 OK", ending: Ending = Ending.COMPLETE, headers: bytes = b""
) -> Answer:
    head = b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, headers, len(body))
    made = Answer(0, ending, 0, pieces=(head, body))
    made.lengths.extend([len(head), len(body)])
    return made


def reply_to(given: Answer, asked: int = 2) -> tuple[Reply | None, int]:
    """And how often others had their turn meanwhile."""
    steps, count = read_reply(given, NativeDialect(), asked), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


def test_a_whole_answer_is_a_reply() -> None:
    assert reply_to(answer(WHOLE)) == (Reply("ab", [7, 8]), 0)


def long_answer(num_tokens: int, end: bytes, *, spoilt: int | None = None) -> Answer:
    """As `/generate` says it: all of it again with each token."""
    events = []
    for count in range(1, num_tokens + 1):
        reason = '{"type": "length"}' if count == num_tokens else "null"
        meta = f'{{"completion_tokens": {count}, "finish_reason": {reason}}}'
        text = f'data: {{"text": "{"x" * count}", "output_ids": {list(range(count))}, "meta_info": {meta}}}'
        events.append(b"data: {not json" if count == spoilt else text.encode())
    return answer(end.join([*events, b"data: [DONE]", b""]))


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_long_answer_is_read_in_steps_and_says_the_same(end: bytes) -> None:
    reply, num_steps = reply_to(long_answer(800, end), 800)
    assert reply == Reply("x" * 800, list(range(800)))
    assert num_steps > 5
    assert reply_to(long_answer(800, end, spoilt=400), 800)[0] is None, "its record says that it failed"


@pytest.mark.parametrize(
    "broken",
    [
        answer(WHOLE, status=b"500 Oops"),
        answer(WHOLE, ending=Ending.TRUNCATED),
        answer(WHOLE, ending=Ending.TIMED_OUT),
        answer(EVENT % b"null"),
        answer(EVENT % b"null" + b'data: {"error": {"message": "out of pages"}}\n\n' + WHOLE),
        answer(EVENT % b'{"type": "abort"}'),
        answer(b"not an answer"),
        answer(b""),
        Answer(0, Ending.COMPLETE, 0, pieces=(b"not HTTP",)),
    ],
)
def test_what_makes_no_record_of_success_is_no_reply(broken: Answer) -> None:
    assert reply_to(broken)[0] is None


def test_the_worker_that_answered_is_known_where_a_header_names_it() -> None:
    assert read_body(answer(WHOLE, headers=b"X-Worker-Id: 3\r\n")).worker == "3"
    assert read_body(answer(WHOLE)).worker is None
