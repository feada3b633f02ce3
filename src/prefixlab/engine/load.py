"""From settings to an engine that is ready to run: for the server's launch file and the LLM."""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.clock import Clock
from prefixlab.core.seams import Runner, Tokenizer
from prefixlab.engine.config import EngineConfig


@dataclass(frozen=True)
class LoadedEngine:
    runner: Runner
    tokenizer: Tokenizer
    model_name: str
    max_model_len: int
    num_pages: int
    eos_token_ids: frozenset[int]


def load_engine(
    config: EngineConfig, *, page_size: int, num_pages: int | None, max_running_requests: int, clock: Clock
) -> LoadedEngine:
    raise NotImplementedError
