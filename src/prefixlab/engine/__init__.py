"""Tensors: models, weights, KV pool, sampler, runner, and the offline LLM. The only folder with torch.

Importing this package imports no torch; its files do. `prefixlab.engine.LLM` is looked up when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefixlab.engine.llm import LLM

__all__ = ["LLM"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from prefixlab.engine.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
