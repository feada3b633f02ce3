from __future__ import annotations

import numpy as np
import pytest

from prefixlab.core.errors import InvalidRequestError
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams


def test_tokens_are_prompt_then_output() -> None:
    request = Request("r", np.array([1, 2, 3], dtype=np.int32), SamplingParams())
    request.output_token_ids += [4, 5]
    assert request.token_ids().tolist() == [1, 2, 3, 4, 5]
    assert request.token_ids(4).tolist() == [1, 2, 3, 4]
    assert request.num_tokens == 5


def test_a_slice_of_the_prompt_is_no_copy() -> None:
    prompt = np.arange(10, dtype=np.int32)
    assert np.shares_memory(Request("r", prompt, SamplingParams()).token_ids(7), prompt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", 999),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_k", 0),
        ("min_p", 1.1),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("repetition_penalty", 0.0),
        ("seed", 2**64),
        ("stop", ("",)),
        ("num_logprobs", 21),
    ],
)
def test_a_bad_sampling_parameter_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        SamplingParams(**{field: value}).validate()  # type: ignore[arg-type]
    assert caught.value.param == field


def test_the_defaults_are_valid_and_sample() -> None:
    assert not SamplingParams().validate().greedy
    assert SamplingParams(temperature=0.0).validate().greedy
    assert SamplingParams(top_k=1).validate().greedy
