"""What can be known to be wrong with a point once its server is known, before anything is made or sent.

Owns those checks: that the requests can be made in a form the server takes, and are no longer than it takes.
Settings check themselves.

Invariant: nothing is sent or written.
"""

from __future__ import annotations

import numpy as np

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.runs.point import CHAT, Asker, Outline, workload_path
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.files.custom import content_of
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer


def check_point(endpoint: Endpoint, config: ServeConfig, tokenizer: Tokenizer | None) -> None:
    """Raises ConfigError if files cannot be read, or the requests cannot be made or do not fit the server."""
    asker = Asker(endpoint, config, tokenizer)
    planned = asker.outline()
    check_lengths(endpoint, planned)
    if planned.workload.made_up is not None:
        next(asker.requests(planned, 0, 0))
        return
    one_of_each = {(row.token_ids is None, row.messages is None): row for row in planned.workload.rows}
    for row in one_of_each.values():
        chat, template = endpoint.backend == CHAT, config.dataset.chat_template
        content_of(row, chat=chat, template=template, tokenizer=tokenizer)


def check_files(config: ServeConfig) -> None:
    """Of a run that begins: one that goes on writes its own again. Raises ConfigError if a file is there that
    it would destroy."""
    name = config.report.save_workload
    if name is None:
        return
    for repeat in range(config.load.repeats):
        path = workload_path(name, repeat, config.load.repeats)
        if path.is_file():
            raise ConfigError(f"--save-workload {path} is there already: remove it, or give another name")


def check_lengths(endpoint: Endpoint, planned: Outline) -> None:
    """As far as lengths are known here. Raises ConfigError if one is more than the server takes."""
    limit = endpoint.facts.max_model_len
    if limit is None:
        return
    workload = planned.workload
    prompt_tokens = workload.prompt_tokens or [len(row.token_ids or ()) for row in workload.rows]
    longest = int(np.max(np.add(prompt_tokens, workload.output_tokens)))
    if longest > limit:
        raise ConfigError(
            f"a request of {longest} tokens of prompt and output: "
            f"the server takes at most {limit}; see {workload.length_flags}"
        )
