"""Records of every kind, for hypothesis: times in whole nanoseconds, so that lines keep them exactly."""

from __future__ import annotations

from hypothesis import strategies as st

from prefixlab.bench.records.record import Failure, Outcome, Record

counts = st.integers(0, 10**9)
words = st.text(min_size=1, max_size=8)
gaps_ns = st.integers(0, 10**12)


def maybe(strategy: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.none() | strategy


@st.composite
def records(draw: st.DrawFn) -> Record:
    """One record that passes its own check."""
    outcome = draw(st.sampled_from(Outcome))
    failed = outcome is Outcome.FAILED
    now_ns = draw(gaps_ns)

    def later() -> float:
        nonlocal now_ns
        now_ns += draw(gaps_ns)
        return now_ns / 1e9

    intended_s = later()
    sent = outcome is Outcome.OK or draw(st.booleans())
    connected = sent and draw(st.booleans())
    connect_started_s = later() if connected else None
    connected_s = later() if connected else None
    sent_s = later() if sent else None
    answered = sent and draw(st.booleans())
    first_byte_s = later() if answered else None
    num_arrivals = draw(st.integers(0, 5)) if answered else 0
    arrivals_s = tuple(later() for _ in range(num_arrivals))
    return Record(
        request_id=draw(words),
        outcome=outcome,
        intended_s=intended_s,
        connect_started_s=connect_started_s,
        connected_s=connected_s,
        sent_s=sent_s,
        first_byte_s=first_byte_s,
        first_content_s=draw(st.none() | st.sampled_from(arrivals_s)) if arrivals_s else None,
        arrivals_s=arrivals_s,
        arrival_counts=tuple(draw(st.integers(1, 9)) for _ in arrivals_s),
        counts_estimated=draw(st.booleans()),
        last_s=later() if sent else None,
        planned_prompt_tokens=draw(counts),
        planned_output_tokens=draw(counts),
        num_prompt_tokens=draw(maybe(counts)),
        num_expected_cached_tokens=draw(maybe(counts)),
        num_cached_tokens=draw(maybe(counts)),
        num_reasoning_tokens=draw(maybe(counts)),
        num_merged_reads=draw(counts),
        kernel_stamps=draw(st.booleans()),
        finish_reason=draw(st.none() | words),
        failure=draw(st.sampled_from(Failure)) if failed else None,
        http_status=draw(maybe(st.integers(100, 599))),
        error=draw(st.text(max_size=20)) if failed else None,
        num_retries=draw(st.integers(0, 9)),
        session_id=draw(st.none() | words),
        turn=draw(maybe(counts)),
        client=draw(st.integers(0, 9)),
        segment=draw(st.integers(0, 3)),
        worker=draw(st.none() | words),
    )


record_lists = st.lists(records(), max_size=6)
