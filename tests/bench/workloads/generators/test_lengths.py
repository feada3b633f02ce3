from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.config.dataset import DatasetConfig, RandomLengthsConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.runs.making import make_workload
from prefixlab.bench.workloads.generators.lengths import Spread
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.core.errors import ConfigError


def made(dataset: dict[str, Any], **lengths: Any) -> tuple[Sketches, str]:
    """The workload and its note."""
    config = ServeConfig(dataset=DatasetConfig(**dataset), random_lengths=RandomLengthsConfig(**lengths))
    workload = make_workload(config, 20_000)
    assert workload.sketches is not None
    return workload.sketches, workload.notes[0]


@pytest.mark.parametrize("law", ["normal", "lognormal"])
def test_a_law_has_the_mean_and_deviation_asked_for(law: str) -> None:
    sketches, note = made(
        {"random_input_len": 1000, "random_output_len": 200}, random_length_law=law, random_length_cv=0.25
    )
    for lengths, mean in ((sketches.prompt_tokens, 1000), (sketches.output_tokens, 200)):
        assert lengths.mean() == pytest.approx(mean, rel=0.01)
        assert lengths.std() == pytest.approx(mean / 4, rel=0.03)
    assert note == f"prompts of 1,000 ± 250 ({law}) tokens, outputs of 200 ± 50 ({law})"
    assert abs(np.corrcoef(sketches.prompt_tokens, sketches.output_tokens)[0, 1]) < 0.03


def test_no_length_is_less_than_a_token_and_a_prefix_comes_besides() -> None:
    sketches, note = made(
        {"random_input_len": 2, "random_prefix_len": 10}, random_length_law="normal", random_length_cv=3.0
    )
    assert sketches.prompt_tokens.min() == 11
    assert "behind 10 that all share" in note


def test_a_longer_draw_begins_like_a_shorter_one() -> None:
    law = Spread("lognormal", 100, 1.0)
    assert law.draw(500, 1)[:200].tolist() == law.draw(200, 1).tolist() != law.draw(200, 2).tolist()


def test_lengths_of_a_file_are_drawn_in_pairs(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text(
        "num_prefill_tokens,num_decode_tokens\n" + "\n".join(f"{100 * n},{n}" for n in range(1, 9))
    )
    sketches, note = made({}, random_length_file=str(path))
    assert (sketches.prompt_tokens == 100 * sketches.output_tokens).all()
    assert np.bincount(sketches.output_tokens)[1:] == pytest.approx(np.full(8, 2500), rel=0.1)
    assert note == "lengths of prompts and of outputs are those of lengths.csv"


@pytest.mark.parametrize(
    ("dataset", "lengths", "complaint"),
    [
        ({}, {"random_length_cv": 0.2}, "--random-length-cv is for --random-length-law"),
        ({}, {"random_length_cv": 0.0, "random_length_law": "normal"}, "--random-length-cv must be above 0"),
        ({}, {"random_length_file": "x", "random_length_law": "normal"}, "both say how long"),
        ({"random_range_ratio": "0.5"}, {"random_length_law": "normal"}, "--random-range-ratio: "),
        ({}, {"random_length_file": "no-such-file"}, "no-such-file"),
    ],
)
def test_lengths_that_cannot_be_are_refused(
    dataset: dict[str, Any], lengths: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made(dataset, **lengths)
