"""From settings to a simulated engine that is ready to run: what a server or an in-process target is given.

Owns what follows from the settings together: sizes, tokenizer, ids that may come out.

Invariant: what comes out of it is text: words, neither bytes that are half a character nor special tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.core.clock import WaitingClock
from prefixlab.core.errors import ConfigError
from prefixlab.core.step_time.profile import StepTimeProfile
from prefixlab.core.text.byte_tokenizer import FIRST_WORD_ID, ByteTokenizer
from prefixlab.simulator.config import DEFAULT_KV_TOKENS, DEFAULT_MAX_MODEL_LEN, SIM, SimConfig
from prefixlab.simulator.profile import profile_of
from prefixlab.simulator.runner import SimulatedRunner


@dataclass(frozen=True)
class SimulatedEngine:
    """A simulated model, and what its drivers need to know of it; named as the engine's LoadedEngine is."""

    config: SimConfig
    profile: StepTimeProfile
    runner: SimulatedRunner
    tokenizer: ByteTokenizer
    model_name: str
    max_model_len: int
    page_size: int
    num_pages: int
    eos_token_ids: frozenset[int]
    seed: int

    def describe(self) -> str:
        """One line for a log: what is imagined, how large, with which seed."""
        where, speedup = self.profile.provenance, self.config.sim_speedup
        faster = "" if speedup == 1 else f", {speedup:g} times as fast"
        return (
            f"{self.model_name}: no model, step times of {self.config.sim_profile} "
            f"({where.model} on {where.machine}{faster}); {self.num_pages:,} KV pages of {self.page_size} "
            f"tokens, up to {self.max_model_len:,} tokens a request; seed {self.seed}"
        )


def load_simulated(
    config: SimConfig,
    *,
    page_size: int,
    num_pages: int | None,
    max_model_len: int | None,
    seed: int,
    clock: WaitingClock,
    keeps_pace: bool = True,
) -> SimulatedEngine:
    """Make it.

    Args:
        num_pages: None: as many as DEFAULT_KV_TOKENS need.
        max_model_len: None: DEFAULT_MAX_MODEL_LEN.
        keeps_pace: for real time; see SimulatedRunner.

    Raises:
        ConfigError: a profile that cannot be used.
    """
    if num_pages is None:
        num_pages = max(1, DEFAULT_KV_TOKENS // page_size)
    tokenizer = ByteTokenizer(config.sim_vocab_size)
    profile = profile_of(config)
    eos_token_ids = tokenizer.eos_token_ids
    if max_model_len is not None and max_model_len < 2:
        raise ConfigError(f"--max-model-len must be at least 2, not {max_model_len}")
    return SimulatedEngine(
        config=config,
        profile=profile,
        runner=SimulatedRunner(
            profile.step_time,
            clock,
            num_pages=num_pages,
            page_size=page_size,
            vocab_size=tokenizer.vocab_size,
            first_token_id=FIRST_WORD_ID,
            seed=seed,
            speedup=config.sim_speedup,
            eos_token_id=min(eos_token_ids),
            eos_rate=config.sim_eos_rate,
            keeps_pace=keeps_pace,
        ),
        tokenizer=tokenizer,
        model_name=SIM,
        max_model_len=DEFAULT_MAX_MODEL_LEN if max_model_len is None else max_model_len,
        page_size=page_size,
        num_pages=num_pages,
        eos_token_ids=eos_token_ids,
        seed=seed,
    )
