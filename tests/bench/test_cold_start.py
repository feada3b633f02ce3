from __future__ import annotations

from collections.abc import Sequence

import pytest

from prefixlab.bench.targets.cold_start import Coldness, ColdStart, start_cold
from prefixlab.bench.targets.control import FlushAnswer, ServerFacts
from prefixlab.bench.workloads.wording import Prompt
from prefixlab.core.block_hash import as_token_ids

PROBE = Prompt(as_token_ids(range(33)))


class Flushing:
    """A Control that answers a flush as told."""

    def __init__(self, done: bool) -> None:
        self._answer = FlushAnswer(done, "in its words")

    def facts(self) -> ServerFacts:
        return ServerFacts(backend="x")

    def flush(self) -> FlushAnswer:
        return self._answer

    def metrics_text(self) -> str | None:
        return None


def cold(*, flushed: bool, reported: Sequence[int | None], can_hit: bool = True) -> tuple[ColdStart, int]:
    """What came of it, and how many probes were sent; `reported` are the probes' cached tokens."""
    answers = iter(reported)
    sent = 0

    def ask_cached(prompt: Prompt) -> int | None:
        nonlocal sent
        sent += 1
        return next(answers)

    result = start_cold(Flushing(flushed), ask_cached, PROBE, can_hit=can_hit)
    return result, sent


def test_a_hit_that_turns_into_a_miss_proves_it() -> None:
    result, sent = cold(flushed=True, reported=[0, 32, 0])
    assert result.coldness is Coldness.PROVEN
    assert sent == 3


def test_a_probe_still_cached_from_before_saves_a_request() -> None:
    result, sent = cold(flushed=True, reported=[32, 0])
    assert result.coldness is Coldness.PROVEN
    assert sent == 2


def test_a_flush_that_lies_is_found_out() -> None:
    result, _ = cold(flushed=True, reported=[0, 32, 32])
    assert result.coldness is Coldness.SALTED
    assert "said yes (in its words), but a probe still found 32" in result.detail


def test_a_flush_that_cannot_be_done_is_salted_without_further_probes() -> None:
    result, sent = cold(flushed=False, reported=[0, 32])
    assert result.coldness is Coldness.SALTED
    assert "in its words" in result.detail
    assert sent == 2


@pytest.mark.parametrize("reported", [[None, None, None], [0, 0, 0], [0, 32, None]])
def test_without_a_hit_before_and_a_miss_after_nothing_is_proven(reported: list[int | None]) -> None:
    assert cold(flushed=True, reported=reported)[0].coldness is Coldness.ASSUMED


def test_where_no_probe_could_hit_none_is_sent() -> None:
    result, sent = cold(flushed=True, reported=[], can_hit=False)
    assert result.coldness is Coldness.ASSUMED
    assert sent == 0
