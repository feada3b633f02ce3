"""The sampler: distributions, filters and penalties by their definitions, seeds that mind nobody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.core.errors import EngineError
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.engine.sampling.draw import request_seed, uniforms
from prefixlab.engine.sampling.sampler import Sampler, filtered_probs
from tests.engine.harness import make_request

LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0, -3.0]


def request_with(output: Sequence[int] = (), prompt: Sequence[int] = (0,), **sampling: object) -> Request:
    stop_ids = frozenset(sampling.pop("stop_ids", ()))  # type: ignore[call-overload]
    request_id = str(sampling.pop("request_id", "r"))
    request = make_request(
        prompt,
        SamplingParams(**sampling).validate(),  # type: ignore[arg-type]
        request_id=request_id,
        stop_token_ids=stop_ids,
    )
    request.output_token_ids.extend(output)
    return request


def sample(requests: Sequence[Request], rows: Sequence[Sequence[float]], seed: int = 0) -> list[int]:
    return Sampler(seed).sample(torch.tensor(rows), requests).token_ids.tolist()


def chi_square(counts: Counter[int], probs: Sequence[float], num_draws: int) -> tuple[float, int]:
    """The statistic and its degrees of freedom; tokens of probability 0 must not occur at all."""
    assert all(probs[token] > 0 for token in counts)
    expected = {token: p * num_draws for token, p in enumerate(probs) if p > 0}
    statistic = sum((counts[token] - e) ** 2 / e for token, e in expected.items())
    return statistic, len(expected) - 1


# 99.99 % quantiles of chi-square by degrees of freedom: with fixed seeds, a failure is a bug and no bad luck.
CHI_SQUARE_LIMIT = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51, 5: 25.74}


@pytest.mark.parametrize(
    ("sampling", "probs"),
    [
        ({}, torch.softmax(torch.tensor(LOGITS), 0).tolist()),
        ({"temperature": 0.5}, torch.softmax(torch.tensor(LOGITS) * 2, 0).tolist()),
        ({"temperature": 3.0}, torch.softmax(torch.tensor(LOGITS) / 3, 0).tolist()),
        ({"top_k": 3}, [*torch.softmax(torch.tensor(LOGITS[:3]), 0).tolist(), 0, 0, 0]),
        ({"top_p": 0.7}, [*torch.softmax(torch.tensor(LOGITS[:2]), 0).tolist(), 0, 0, 0, 0]),
        ({"min_p": 0.2}, [*torch.softmax(torch.tensor(LOGITS[:3]), 0).tolist(), 0, 0, 0]),
    ],
    ids=["plain", "cold", "hot", "top_k", "top_p", "min_p"],
)
@pytest.mark.parametrize("vary", ["index", "seed", "request"])
def test_draws_follow_the_distribution(sampling: dict[str, float], probs: list[float], vary: str) -> None:
    """Over the tokens of one request, over requests with seeds 0, 1, 2 …, and over requests without seeds."""
    num_draws = 4000
    if vary == "index":
        requests = [request_with([0] * i, seed=5, max_new_tokens=9999, **sampling) for i in range(num_draws)]
    elif vary == "seed":
        requests = [request_with(seed=i, **sampling) for i in range(num_draws)]
    else:
        requests = [request_with(request_id=f"request-{i}", **sampling) for i in range(num_draws)]
    counts = Counter(sample(requests, [LOGITS] * num_draws))
    statistic, freedom = chi_square(counts, probs, num_draws)
    assert statistic < CHI_SQUARE_LIMIT[freedom]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 100}, [0, 1, 2, 3, 4, 5]),
        ({"top_p": 0.56}, [0]),  # 0.5631 of the mass is the first token's
        ({"top_p": 0.57}, [0, 1]),
        ({"top_p": 0.9999}, [0, 1, 2, 3, 4, 5]),
        ({"top_p": 1e-9}, [0]),
        ({"min_p": 1.0}, [0]),
        ({"min_p": 0.3}, [0, 1]),  # e⁻¹ ≥ 0.3 > e⁻¹·⁵
        # One after the other: among the three that top-k leaves, the first has 0.63 of the mass.
        ({"top_k": 3, "top_p": 0.6}, [0]),
        ({"top_k": 3, "top_p": 0.64}, [0, 1]),
        ({"top_p": 0.9, "min_p": 0.3}, [0, 1]),
        # Temperature comes first: at 2, the first token has 0.38 of the mass.
        ({"temperature": 2.0, "top_p": 0.5}, [0, 1]),
    ],
)
def test_filters_keep_exactly_the_tokens_of_their_definition(
    sampling: dict[str, float], kept: list[int]
) -> None:
    probs = filtered_probs(torch.tensor([LOGITS]), [SamplingParams(**sampling)])[0]  # type: ignore[arg-type]
    assert probs.nonzero().flatten().tolist() == kept


def test_tokens_of_equal_probability_are_kept_or_dropped_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    assert filtered_probs(logits, [SamplingParams(top_k=2)])[0].count_nonzero() == 4
    assert filtered_probs(logits, [SamplingParams(top_p=0.8)])[0].count_nonzero() == 4
    assert filtered_probs(logits, [SamplingParams(top_p=0.6)])[0].nonzero().tolist() == [[1]]


def test_a_nucleus_wider_than_the_first_candidates_is_found() -> None:
    logits = torch.zeros(2, 5000)
    logits[1, 7] = 20.0
    kept = (filtered_probs(logits - torch.arange(5000) * 1e-6, [SamplingParams(top_p=0.9)] * 2) > 0).sum(
        dim=1
    )
    assert 4480 <= kept[0] <= 4520
    assert kept[1] == 1


def test_a_row_without_a_nucleus_keeps_everything_beside_one_with() -> None:
    logits = -torch.arange(5000) * 1e-3
    probs = filtered_probs(logits.repeat(2, 1), [SamplingParams(top_p=0.1), SamplingParams()])
    assert 0 < probs[0].count_nonzero() < 200
    assert probs[1].count_nonzero() == 5000


def naive_filter(logits: np.ndarray, params: SamplingParams) -> set[int]:
    """The slow twin: one row, sorted lists, as the module says it in words."""
    scaled = logits.astype(np.float64) / params.temperature
    kept = set(range(len(scaled)))
    if 0 < params.top_k < len(scaled):
        kth = sorted(scaled, reverse=True)[params.top_k - 1]
        kept = {t for t in kept if scaled[t] >= kth}
    weights = {t: np.exp(scaled[t] - scaled.max()) for t in kept}
    total = sum(weights.values())
    probs = {t: w / total for t, w in weights.items()}
    if params.top_p < 1:
        mass, least = 0.0, 0.0
        for p in sorted(probs.values(), reverse=True):
            mass, least = mass + p, p
            if mass >= params.top_p:
                break
        kept = {t for t in kept if probs[t] >= least}
    return {t for t in kept if probs[t] >= params.min_p * max(probs.values())}


@settings(deadline=None, max_examples=200)
@given(
    quarters=st.lists(st.integers(-40, 40), min_size=2, max_size=30),
    params=st.lists(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.25, 1.0, 4.0]),
            top_k=st.sampled_from([-1, 2, 5, 29]),
            top_p=st.sampled_from([0.1003, 0.5003, 0.9003, 1.0]),
            min_p=st.sampled_from([0.0, 0.0501, 0.3001]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_filters_agree_with_their_slow_twin(quarters: list[int], params: list[SamplingParams]) -> None:
    """Logits in quarters, so that equal ones are exactly equal; thresholds that no rounding can sit on."""
    logits = np.array(quarters, dtype=np.float32) / 4
    rows = filtered_probs(torch.tensor(logits).repeat(len(params), 1), params)
    for row, one in zip(rows, params, strict=True):
        assert set(row.nonzero().flatten().tolist()) == naive_filter(logits, one)


@pytest.mark.parametrize(
    ("sampling", "output", "prompt", "expected"),
    [
        # Outputs 0, 0, 1. Presence and frequency count outputs only.
        ({"presence_penalty": 0.5}, [0, 0, 1], [3], [1.5, 0.5, 0.5, 0.0, -1.0, -3.0]),
        ({"presence_penalty": -0.5}, [0, 0, 1], [3], [2.5, 1.5, 0.5, 0.0, -1.0, -3.0]),
        ({"frequency_penalty": 0.5}, [0, 0, 1], [3], [1.0, 0.5, 0.5, 0.0, -1.0, -3.0]),
        (
            {"presence_penalty": 0.5, "frequency_penalty": 0.25},
            [0, 0, 1],
            [3],
            [1.0, 0.25, 0.5, 0.0, -1.0, -3.0],
        ),
        # Repetition counts the prompt too, divides what is positive and multiplies what is not.
        ({"repetition_penalty": 2.0}, [0], [4, 5, 5], [1.0, 1.0, 0.5, 0.0, -2.0, -6.0]),
        ({"repetition_penalty": 0.5}, [0], [4], [4.0, 1.0, 0.5, 0.0, -0.5, -3.0]),
        (
            {"repetition_penalty": 2.0, "frequency_penalty": 1.0},
            [0, 0],
            [1],
            [-1.0, 0.5, 0.5, 0.0, -1.0, -3.0],
        ),
        ({}, [0, 0, 1], [3], LOGITS),
    ],
)
def test_penalties_follow_their_formulas(
    sampling: dict[str, float], output: list[int], prompt: list[int], expected: list[float]
) -> None:
    logits = torch.tensor([LOGITS, LOGITS])
    neighbour = request_with([2], temperature=0.0)
    Sampler(0).sample(logits, [request_with(output, prompt, temperature=0.0, **sampling), neighbour])
    assert logits[0].tolist() == pytest.approx(expected)
    assert logits[1].tolist() == LOGITS, "a neighbour without penalties keeps its logits"


def test_stop_ids_are_held_back_until_the_minimum_is_reached() -> None:
    rows = [LOGITS] * 3
    requests = [
        request_with([1] * n, temperature=0.0, min_new_tokens=2, stop_ids=[0, 1, 99]) for n in (0, 1, 2)
    ]
    assert sample(requests, rows) == [2, 2, 0]


def test_greedy_takes_the_likeliest_and_a_top_k_of_one_is_greedy() -> None:
    rows = [[0.0, 5.0, 1.0], [9.0, 5.0, 1.0]]
    assert sample([request_with(temperature=0.0), request_with(top_k=1)], rows) == [1, 0]


@settings(deadline=None, max_examples=60)
@given(
    neighbours=st.lists(
        st.builds(
            dict,
            seed=st.none() | st.integers(0, 99),
            temperature=st.sampled_from([0.0, 0.7, 2.0]),
            top_k=st.sampled_from([-1, 3]),
            top_p=st.sampled_from([0.5, 1.0]),
            presence_penalty=st.sampled_from([0.0, 1.0]),
        ),
        max_size=5,
    ),
    place=st.integers(0, 5),
    index=st.integers(0, 50),
)
def test_a_seeded_request_draws_the_same_beside_any_neighbours(
    neighbours: list[dict[str, object]], place: int, index: int
) -> None:
    torch.manual_seed(1)
    rows = torch.randn(len(neighbours) + 1, 50)
    me = request_with([1] * index, seed=11, temperature=1.3, top_p=0.9, frequency_penalty=0.2)
    others = [request_with([2, 3], request_id=f"n{i}", **n) for i, n in enumerate(neighbours)]
    place = min(place, len(others))
    together = Sampler(0).sample(rows.clone(), [*others[:place], me, *others[place:]]).token_ids[place]
    assert together == Sampler(5).sample(rows[place : place + 1].clone(), [me]).token_ids[0]


def test_requests_without_a_seed_draw_by_engine_seed_and_id() -> None:
    def seeds(engine_seed: int) -> list[int]:
        return [request_seed(request_with(request_id=str(i)), engine_seed) for i in range(100)]

    assert seeds(1) == seeds(1)
    assert len(set(seeds(1) + seeds(2))) == 200
    assert request_seed(request_with(seed=-1), 0) == 2**64 - 1


def test_uniform_numbers_do_not_repeat_over_neighbouring_seeds_and_indexes() -> None:
    seeds, indexes = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64))
    numbers = uniforms(seeds.ravel(), indexes.ravel())
    assert len(np.unique(numbers)) == 90_000
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    assert abs(numbers.mean() - 0.5) < 0.005
    grid = numbers.reshape(300, 300)
    for one, other in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_a_point_at_the_very_end_picks_the_last_token_that_has_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "prefixlab.engine.sampling.sampler.uniforms", lambda seeds, indexes: np.ones(len(seeds))
    )
    assert sample([request_with(seed=1, top_k=3)], [LOGITS]) == [2]


def test_a_point_at_the_very_start_never_picks_a_token_without_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "prefixlab.engine.sampling.sampler.uniforms", lambda seeds, indexes: np.zeros(len(seeds))
    )
    assert sample([request_with(seed=1, top_k=2)], [[-9.0, -9.0, 1.0, 1.0]]) == [2]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_that_names_the_request(broken: float) -> None:
    requests = [request_with(request_id="good"), request_with(request_id="bad")]
    with pytest.raises(EngineError, match="bad"):
        sample(requests, [LOGITS, [*LOGITS[:5], broken]])


def test_logprobs_are_the_models_whatever_the_sampling() -> None:
    """Before temperature, penalties and filters; the sampled token's, and the likeliest ones'."""
    logits = torch.tensor([LOGITS] * 3)
    expected = torch.log_softmax(logits[0], 0).tolist()
    requests = [
        request_with([0], temperature=0.0, presence_penalty=2.0, num_logprobs=2),
        request_with(temperature=0.0),
        request_with(temperature=5.0, top_k=3, seed=1, num_logprobs=0),
    ]
    sampled = Sampler(0).sample(logits, requests)
    assert set(sampled.logprobs) == {0, 2}
    first = sampled.logprobs[0]
    assert first.token_id == sampled.token_ids[0] == 1
    assert first.logprob == pytest.approx(expected[1])
    assert [token for token, _ in first.top] == [0, 1]
    assert [value for _, value in first.top] == pytest.approx(expected[:2])
    last = sampled.logprobs[2]
    assert last.logprob == pytest.approx(expected[last.token_id])
    assert last.top == ()
