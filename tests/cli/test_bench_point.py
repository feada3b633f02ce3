from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from prefixlab.cli.bench_point import given_settings


@pytest.mark.parametrize("words", [{}, {"served_model_name": "short"}])
def test_a_model_in_a_folder_brings_its_tokenizer_as_users_of_other_clients_expect(
    words: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    given = given_settings(argparse.Namespace(model=str(tmp_path), **words))
    assert given["tokenizer"] == str(tmp_path)
    assert given["model"] == words.get("served_model_name", str(tmp_path))


def test_a_tokenizer_that_is_given_wins_and_a_mere_name_brings_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    given = given_settings(argparse.Namespace(model=str(tmp_path), tokenizer="byte"))
    assert given["tokenizer"] == "byte"
    assert "tokenizer" not in given_settings(argparse.Namespace(model="Qwen/Qwen3-0.6B"))
