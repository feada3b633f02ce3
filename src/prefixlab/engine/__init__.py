"""Tensors: models, weights, KV pool, sampler, runner, and the offline LLM. The only folder with torch.

Importing this package imports no torch; its files do. `prefixlab.engine.LLM` is looked up when it is used.

It does decide one thing for torch, before torch is loaded: OpenMP's threads sleep at a barrier instead of
spinning, unless OMP_WAIT_POLICY says otherwise. An engine shares its cores with its own HTTP server and often
with the client that measures it. Where a core is taken, a spinning thread waits for one that cannot run: with
two threads on two busy cores, a decode step of `tiny` took 78 to 187 ms spinning and 2 to 11 ms sleeping
(medians of 40), a prefill of 2,048 tokens 2.5 to 4.1 s and 0.4 to 1.0 s.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.engine.llm import LLM

__all__ = ["LLM"]

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from prefixlab.engine.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
