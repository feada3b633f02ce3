"""What the rows of a file share, where their tokens are known before they are sent.

Owns the way from those tokens to a workload's sketches; `prefix_tree.py` finds out who shares what. Which
tokens a row becomes is `custom.py`'s.

Invariant: all rows are known, or none is: what a cache serves of one depends on those before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from prefixlab.bench.workloads.prefix_tree import PrefixTree
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.block_hash import TokenIds


def with_sharing(workload: Workload, prompts: Iterable[TokenIds | None], head: TokenIds) -> Workload:
    """`workload` and what its rows share; as it is where the tokens of one are not known.

    Args:
        prompts: of each row what the server's cache will be asked about.
        head: what a template begins prompts of one user message with; empty where there is none.
    """
    tree, num_before = PrefixTree(), int(len(head) > 0)
    if num_before:
        tree.add(head)
    for tokens in prompts:
        if tokens is None or not len(tokens):
            return workload
        tree.add(tokens)
    outputs = np.array([*[1] * num_before, *workload.output_tokens], np.int64)
    behind_head = Sketches(*tree.pieces(), outputs)
    start = behind_head.starts[num_before]
    columns = {
        "starts": behind_head.starts[num_before:] - start,
        "keys": behind_head.keys[start:],
        "sizes": behind_head.sizes[start:],
        "output_tokens": outputs[num_before:],
    }
    # What a file says besides, times and sessions, stays.
    sketches = Sketches(**columns) if workload.sketches is None else replace(workload.sketches, **columns)
    return replace(workload, sketches=sketches, behind_head=behind_head, counted=True, rows_known=True)
