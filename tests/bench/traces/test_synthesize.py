from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.synthesize import SharedTree, Synthesis, synthesize
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.errors import ConfigError

BLOCK = 16


def made(
    paths: list[list[int]], own: list[int], outputs: list[int], times: list[float], **more: object
) -> Trace:
    """A trace whose request i begins with the blocks of `paths[i]`, then has `own[i]` tokens of its own."""
    counts = [len(path) for path in paths]
    return Trace(
        name="made",
        block_size=BLOCK,
        offsets_s=np.array(times, np.float64),
        prompt_tokens=np.array([BLOCK * n + m for n, m in zip(counts, own, strict=True)], np.int64),
        output_tokens=np.array(outputs, np.int64),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        hash_ids=np.array([block for path in paths for block in path], np.int64),
        **more,  # type: ignore[arg-type]
    )


def conversations(num: int = 60, turns: int = 4, seed: int = 0) -> Trace:
    """Behind one system prompt of three blocks, conversations that grow by two blocks a turn."""
    draw = np.random.default_rng(seed)
    rows: list[tuple[float, list[int], int, int]] = []
    for conversation in range(num):
        begin = float(draw.uniform(0, 1000))
        for turn in range(turns):
            grown = [100 + conversation * 100 + block for block in range(2 * turn)]
            rows.append((begin + 7.0 * turn, [0, 1, 2, *grown], int(draw.integers(1, 90)), 5 + turn))
    rows.sort(key=lambda row: row[0])
    first_s = rows[0][0]
    times = [row[0] - first_s for row in rows]
    return made([r[1] for r in rows], [r[2] for r in rows], [r[3] for r in rows], times)


def context(trace: Trace) -> np.ndarray:
    return SharedTree.of(trace).context


def pairs(trace: Trace) -> list[tuple[int, int]]:
    return sorted(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True))


def ideal_hit_rate(trace: Trace) -> float:
    sketches = trace.sketches
    return float(sketches.shared_tokens.sum() / sketches.prompt_tokens.sum())


def test_at_factors_of_one_lengths_go_together_and_sharing_is_as_in_the_source() -> None:
    source = conversations()
    result = synthesize(source, Synthesis(), 1)
    assert pairs(result) == pairs(source)
    assert ideal_hit_rate(result) == pytest.approx(ideal_hit_rate(source), abs=1e-12)
    assert len(set(result.hash_ids.tolist())) >= len(set(source.hash_ids.tolist()))


def test_the_turns_of_a_conversation_keep_their_distances_in_time() -> None:
    result = synthesize(conversations(turns=3), Synthesis(), 5)
    families = SharedTree.of(result).families
    seen = 0
    for family in range(families.max() + 1):
        times = result.offsets_s[families == family]
        if len(times) == 2:  # the first turn shares only what all do, so it stands alone
            assert np.diff(times) == pytest.approx([7.0])
            seen += 1
    assert seen == 60


def test_beginnings_are_swapped_and_another_seed_swaps_others() -> None:
    source = conversations()
    first, again, other = (synthesize(source, Synthesis(), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.prompt_tokens, again.prompt_tokens)
    assert np.array_equal(first.hash_ids, again.hash_ids)
    assert not np.array_equal(first.prompt_tokens, source.prompt_tokens)
    assert not np.array_equal(first.prompt_tokens, other.prompt_tokens)


def test_bursts_of_a_clock_that_ticks_stay_bursts() -> None:
    source = conversations()
    ticking = made(
        [source.hash_ids[a:b].tolist() for a, b in zip(source.starts[:-1], source.starts[1:], strict=True)],
        (source.prompt_tokens - BLOCK * np.diff(source.starts)).tolist(),
        source.output_tokens.tolist(),
        (source.offsets_s // 30 * 30).tolist(),
    )
    result = synthesize(ticking, Synthesis(), 1)
    assert set(result.offsets_s.tolist()) <= set(ticking.offsets_s.tolist())


def test_more_requests_than_the_source_has_do_not_hit_their_own_twins() -> None:
    source = conversations()
    result = synthesize(source, Synthesis(num_requests=3 * len(source)), 1)
    assert len(result) == 3 * len(source)
    # What all begin with is missed once, not three times: that is all the difference.
    rounding = 3 * BLOCK * 2 / source.prompt_tokens.sum()
    assert ideal_hit_rate(result) == pytest.approx(ideal_hit_rate(source), abs=rounding)
    rate, source_rate = (len(trace) / trace.offsets_s[-1] for trace in (result, source))
    assert rate == pytest.approx(source_rate, rel=0.01)


def test_fewer_requests_are_the_first_in_time_at_the_same_rate() -> None:
    source = conversations()
    result = synthesize(source, Synthesis(num_requests=120), 1)
    assert len(result) == 120
    assert result.offsets_s[-1] == pytest.approx(source.offsets_s[119], rel=0.1)


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0, 2.25])
def test_the_shared_part_grows_by_its_factor_and_the_rest_does_not(factor: float) -> None:
    source = conversations(num=300)
    result = synthesize(source, Synthesis(prefix_len_multiplier=factor), 1)
    assert context(result).sum() / context(source).sum() == pytest.approx(factor, rel=0.01)
    own, source_own = result.prompt_tokens - context(result), source.prompt_tokens - context(source)
    assert own.sum() == pytest.approx(source_own.sum(), rel=0.01)
    assert sorted(result.output_tokens.tolist()) == sorted(source.output_tokens.tolist())


def test_whoever_shared_a_prefix_shares_the_stretched_one() -> None:
    source = made([[0, 1, 2, 3], [0, 1, 7, 8], [0, 1, 2, 3]], [5, 5, 5], [1, 1, 1], [0.0, 1.0, 2.0])
    result = synthesize(source, Synthesis(prefix_len_multiplier=3.0), 1)
    paths = [
        result.hash_ids[a:b].tolist() for a, b in zip(result.starts[:-1], result.starts[1:], strict=True)
    ]
    four, two = [path for path in paths if len(path) == 12], [path for path in paths if len(path) == 8]
    assert four[0][:12] == four[1][:12]
    assert two[0][:6] == four[0][:6] and two[0][6] != four[0][6]


def test_the_other_factors_are_met_on_average() -> None:
    source = conversations(num=300)
    how = Synthesis(prompt_len_multiplier=1.7, output_len_multiplier=0.3, speedup=2.0)
    result = synthesize(source, how, 1)
    own, source_own = result.prompt_tokens - context(result), source.prompt_tokens - context(source)
    assert own.sum() / source_own.sum() == pytest.approx(1.7, rel=0.01)
    # Outputs of 5 … 8 tokens at 0.3, none below 1: the mean is exact because none would be.
    assert result.output_tokens.mean() / source.output_tokens.mean() == pytest.approx(0.3, rel=0.03)
    assert result.offsets_s[-1] == pytest.approx(source.offsets_s[-1] / 2, rel=0.05)
    assert context(result).sum() == context(source).sum()


@pytest.mark.parametrize(("factor", "num_roots", "smallest"), [(1.0, 1, 1.0), (2.0, 2, 0.5), (1.5, 2, 1 / 3)])
def test_roots_multiply_and_a_fraction_is_a_smaller_tree(
    factor: float, num_roots: int, smallest: float
) -> None:
    result = synthesize(conversations(num=600), Synthesis(prefix_root_multiplier=factor), 1)
    firsts = result.hash_ids[result.starts[:-1]]
    _, counts = np.unique(firsts, return_counts=True)
    assert len(counts) == num_roots
    assert counts.min() / len(result) == pytest.approx(smallest, abs=0.03)


def test_limits_leave_requests_out_and_cut_outputs() -> None:
    source = conversations()
    how = Synthesis(num_requests=500, min_isl=60, max_isl=150, min_osl=6, max_osl=7)
    result = synthesize(source, how, 1)
    assert len(result) == 500
    assert result.prompt_tokens.min() >= 60 and result.prompt_tokens.max() <= 150
    assert set(result.output_tokens.tolist()) == {6, 7}
    with pytest.raises(ConfigError, match="no request is left of made: see --min-isl and --max-isl"):
        synthesize(source, Synthesis(min_isl=10**6), 1)


def test_sessions_stay_whole_and_those_of_a_copy_have_names_of_their_own() -> None:
    source = made(
        [[0, 1], [5, 6], [0, 1, 2], [5, 6, 7]],
        [3, 3, 3, 3],
        [1, 2, 3, 4],
        [0.0, 1.0, 10.0, 12.0],
        session_ids=["a", "b", "a", "b"],
        turns=np.array([0, 0, 1, 1]),
        think_s=np.array([np.nan, np.nan, 4.0, 6.0]),
    )
    result = synthesize(source, Synthesis(num_requests=8, speedup=2.0), 1)
    assert result.session_ids is not None and result.turns is not None and result.think_s is not None
    assert set(result.session_ids) == {"a", "b", "a-copy1", "b-copy1"}
    for name in set(result.session_ids):
        rows = [row for row, other in enumerate(result.session_ids) if other == name]
        assert result.turns[rows].tolist() == [0, 1]
        assert result.think_s[rows[1]] == (2.0 if name.startswith("a") else 3.0)


def test_a_trace_that_says_nothing_of_sharing_makes_one_that_says_nothing() -> None:
    source = made([[], [], []], [5000, 70, 9], [1, 2, 3], [0.0, 1.0, 2.0])
    result = synthesize(source, Synthesis(num_requests=7, prompt_len_multiplier=2.0), 1)
    assert len(result) == 7 and not result.has_ids
    assert set(result.prompt_tokens.tolist()) == {10_000, 140, 18}


@pytest.mark.parametrize("names_parts", [True, False])
def test_last_partial_blocks_have_ids_where_the_sources_have(names_parts: bool) -> None:
    paths = [[0, 1, 10 + i] if names_parts else [0, 1] for i in range(5)]
    own = [-6 if names_parts else 10] * 5  # 42 tokens either way
    source = made(paths, own, [1] * 5, [float(i) for i in range(5)])
    result = synthesize(source, Synthesis(), 1)
    assert result.prompt_tokens.tolist() == [42] * 5
    assert np.diff(result.starts).tolist() == [3 if names_parts else 2] * 5
    ideal = [len(set(trace.hash_ids.tolist())) for trace in (source, result)]
    assert ideal[0] == ideal[1]


def test_a_turn_whose_predecessor_is_left_out_waits_for_nobody() -> None:
    source = made(
        [[0], [0, 1], [0, 1, 2]],
        [3, 300, 3],
        [1, 1, 1],
        [0.0, 5.0, 9.0],
        session_ids=["a"] * 3,
        turns=np.array([0, 1, 2]),
        think_s=np.array([np.nan, 4.0, 3.0]),
    )
    result = synthesize(source, Synthesis(max_isl=100), 1)
    assert result.think_s is not None and np.isnan(result.think_s).all()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"speedup": 0.0}, "--speedup must be a positive number"),
        ({"prefix_len_multiplier": -1.0}, "--prefix-len-multiplier must be a positive number"),
        ({"prefix_root_multiplier": 0.5}, "--prefix-root-multiplier must be at least 1"),
        ({"num_requests": 0}, "--num-requests must be at least 1"),
        ({"min_osl": 5, "max_osl": 4}, "--min-osl 5 is above --max-osl 4"),
    ],
)
def test_nonsense_is_refused_by_the_flags_name(how: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Synthesis(**how)  # type: ignore[arg-type]


factors = st.floats(0.2, 3.0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 40), st.integers(1, 9)),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 60),
    factors,
    factors,
    st.floats(1.0, 3.0),
    st.integers(0, 2**32),
)
def test_whatever_comes_out_is_a_trace_of_so_many_requests(
    rows: list[tuple[list[int], int, int]], wanted: int, prefix: float, prompt: float, root: float, seed: int
) -> None:
    # Ids are of beginnings: the same block behind another beginning is another id.
    known: dict[tuple[int, ...], int] = {}
    paths = [
        [known.setdefault(tuple(path[: i + 1]), len(known)) for i in range(len(path))] for path, _, _ in rows
    ]
    own = [max(1, tokens) if not path else tokens for path, tokens, _ in rows]
    source = made(paths, own, [row[2] for row in rows], [float(i) for i in range(len(rows))])
    how = Synthesis(
        num_requests=wanted,
        prefix_len_multiplier=prefix if source.has_ids else 1.0,
        prompt_len_multiplier=prompt,
        prefix_root_multiplier=root if source.has_ids else 1.0,
    )
    result = synthesize(source, how, seed)
    assert len(result) == wanted
    assert (np.diff(result.offsets_s) >= 0).all() and result.offsets_s[0] == 0
    counts, full = np.diff(result.starts), result.prompt_tokens // BLOCK
    assert ((counts == full) | (counts == -(-result.prompt_tokens // BLOCK)) | ~result.has_ids).all()
    assert (result.output_tokens > 0).all()
    assert (result.sketches.shared_tokens <= result.prompt_tokens).all()


@pytest.mark.parametrize(
    ("flag", "lacks"),
    [("prefix_len_multiplier", "hash ids"), ("prefix_root_multiplier", "hash ids"), ("speedup", "times")],
)
def test_a_factor_of_what_the_source_does_not_say_is_refused(flag: str, lacks: str) -> None:
    source = made([[], []], [20, 30], [4, 5], [0, 0], has_times=False)
    with pytest.raises(
        ConfigError, match=f"^--{flag.replace('_', '-')} changes nothing: made has no {lacks}"
    ):
        synthesize(source, Synthesis(**{flag: 2.0}), seed=0)
    assert len(synthesize(source, Synthesis(prompt_len_multiplier=2.0), seed=0)) == 2
