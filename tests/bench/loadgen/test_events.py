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


def test_a_whole_answer_is_a_reply() -> None:
    assert read_reply(answer(WHOLE), NativeDialect(), 2) == Reply("ab", [7, 8])


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
    assert read_reply(broken, NativeDialect(), 2) is None


def test_the_worker_that_answered_is_known_where_a_header_names_it() -> None:
    assert read_body(answer(WHOLE, headers=b"X-Worker-Id: 3\r\n")).worker == "3"
    assert read_body(answer(WHOLE)).worker is None
