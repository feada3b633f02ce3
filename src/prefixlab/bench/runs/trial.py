"""The trial: one request before anything is measured or kept, where nobody knows whether token ids are taken.

Owns which failures end a run before it begins: those that every request would meet. What is asked is
`point.py`'s.

Invariant: a server that says which ids it knows is sent nothing.
"""

from __future__ import annotations

from http import HTTPStatus

from prefixlab.bench.config.dataset import FILE_DATASETS
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.runs.point import Asker, outline
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.targets.hints import blames_token_ids, with_hint
from prefixlab.core.errors import TargetError

PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
"""Statuses that blame the client, and may be gone with the next request."""
NOT_THE_PROMPT = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
ADVICE = "give --vocab-size or --tokenizer, for ids the model knows, or --prompt-form text, if it takes none"


def try_out(endpoint: Endpoint, config: ServeConfig) -> None:
    """Send the trial, if there is something to find out.

    Raises:
        ConfigError: prompts cannot be made as asked.
        TargetError: the server refuses it, and so would refuse every request.
        KeyboardInterrupt: it was interrupted.
    """
    if config.dataset.dataset_name in FILE_DATASETS:
        return  # their ids are the file's
    asker = Asker(endpoint, config)
    planned = asker.trial(outline(config))
    if planned is None:
        return
    record = endpoint.send(planned)
    if refuses(record):
        error = record.error or record.outcome.value
        if record.http_status in NOT_THE_PROMPT:
            error = with_hint(error, endpoint.url)
        else:
            error += f" ({ADVICE})"
        made_of = asker.wording.vocabulary.describe()
        raise TargetError(f"the server refuses a first request, of {made_of}: {error}")


def refuses(record: Record) -> bool:
    """Whether the server finds fault with the request itself; all else is for the run to count."""
    status = record.http_status
    if status is not None and 400 <= status < 500:
        return status not in PASSING
    return record.outcome is Outcome.FAILED and blames_token_ids(record.error or "")
