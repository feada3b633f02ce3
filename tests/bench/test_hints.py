from __future__ import annotations

import pytest

from prefixlab.bench.targets.hints import with_hint

URL = "http://127.0.0.1:30000"


@pytest.mark.parametrize(
    ("error", "url", "advice"),
    [
        ("HTTP 404 from /server_info: not found", URL + "/v1", "leave out /v1 of --base-url"),
        ("HTTP 404 from /server_info: not found", URL, "choose another --backend"),
        ("HTTP 401 from /generate: no", URL, "--api-key"),
        ("HTTP 403 from /generate: no", URL, "--api-key"),
        ("HTTP 400 from /generate: token id 9 is not in the vocabulary", URL, "--vocab-size or --tokenizer"),
        ('HTTP 400 from /v1/completions: {"detail":"prompt must be a string."}', URL, "--prompt-form text"),
        (
            "HTTP 500 from /x: {'type': 'string_type', 'loc': ('body', 'prompt', 'str')",
            URL,
            "--prompt-form text",
        ),
        ("the server gave up: Token id 9 is out of vocabulary", URL, "--vocab-size or --tokenizer"),
    ],
)
def test_an_error_with_a_remedy_names_the_option(error: str, url: str, advice: str) -> None:
    hinted = with_hint(error, url)
    assert hinted.startswith(f"{error} (")
    assert advice in hinted


@pytest.mark.parametrize("error", ["HTTP 503 from /generate: queue is full", "HTTP 500 from /x: HTTP 404"])
def test_an_error_without_a_remedy_is_left_as_it_is(error: str) -> None:
    assert with_hint(error, URL) == error
