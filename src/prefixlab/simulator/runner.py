"""The Runner seam without a model: its steps take the time a profile gives them, on any clock.

Owns what a simulated step does: tokens, and when it ends. The tokens are real in the sense that matters to a
cache: every place of a page keeps one 64-bit number of KV, made from the token there and the KV before it,
and the next token is a hash of the last one. So output depends on all tokens before it, as the page table
gives them: the same with or without cache, however batches and chunks fall; another if a page is mixed up.

The simulated model is certain of every token: its probability is 1. So temperature, top-p, penalties and
seeds change nothing, as they would in any model that is certain; a token's logprob is 0.

**Time.** A step starts when the last one ended, or when the last of its requests arrived, if that was later,
and ends after its duration. On real time, what the scheduler and the server do between two steps thereby
counts as part of the next step instead of adding to it, and nothing drifts. A lag of more than MAX_LAG_S is
given up: a host that cannot keep up is slower than its profile, and shows it.

Invariant: on virtual time a step takes its duration exactly; tokens never depend on time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prefixlab.core.batch import Batch, StepResult, TokenLogprobs
from prefixlab.core.clock import WaitingClock
from prefixlab.core.request import Request
from prefixlab.core.step_time.model import StepTime
from prefixlab.core.step_time.shape import StepShape

MAX_LAG_S = 0.02
"""How far behind its time a step may end and the next one still make up for it: a turn of the event loop."""
IMPOSSIBLE_LOGPROB = -9999.0
"""Of a prompt's token that is not the one this model is certain of. (JSON has no infinity.)"""

UInts = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]

_STEP = 0x9E3779B97F4A7C15
_TOKEN_FACTOR = 0xD1342543DE82EF95  # odd, so that no power of it is 0


class SimulatedRunner:
    """See the module.

    Args:
        num_pages, page_size: of the KV it keeps, 8 bytes a token.
        vocab_size: as told to others; prompts may hold any of them.
        first_token_id: tokens it makes lie in first_token_id … vocab_size - 1.
        speedup: durations are divided by it; inf makes them 0.
        eos_token_id, eos_rate: the end of sequence, and how likely it is at each token of a request that
            heeds it. Such a request's tokens are still a function of its tokens alone.
        keeps_pace: let a step begin in the past, by up to MAX_LAG_S (see the module); for real time.
    """

    def __init__(
        self,
        step_time: StepTime,
        clock: WaitingClock,
        *,
        num_pages: int,
        page_size: int,
        vocab_size: int,
        first_token_id: int = 0,
        seed: int = 0,
        speedup: float = 1.0,
        eos_token_id: int = 0,
        eos_rate: float = 0.0,
        keeps_pace: bool = False,
    ) -> None:
        self._step_time = step_time
        self._clock = clock
        self._page_size = page_size
        self._vocab_size = vocab_size
        self._first_token_id = first_token_id
        self._seed = _scrambled(np.array([seed % 2**64], dtype=np.uint64))
        self._speedup = speedup
        self._eos_token_id = eos_token_id
        self._eos_below = np.uint64(min(round(eos_rate * 2**64), 2**64 - 1))
        self._max_lag_s = MAX_LAG_S if keeps_pace else 0.0
        self._free_s = float("-inf")
        """When the last step should have ended."""
        self._kv = np.zeros(num_pages * page_size, dtype=np.uint64)
        self._powers = _powers(1)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def run(self, batch: Batch) -> StepResult:
        """See `core.seams.Runner`. Raises nothing but bugs: a simulated step does not fail."""
        duration_s = self._step_time.duration_s(StepShape.of(batch)) / self._speedup
        end_s = self._start_s(batch) + duration_s
        kv = self._compute(batch)
        token_ids = np.where(batch.samples, self._tokens_after(kv), -1).astype(np.int32)
        self._end_some(batch, kv, token_ids)
        result = StepResult(token_ids, duration_s)
        self._add_logprobs(batch, result)
        self._clock.wait_until(end_s)
        self._free_s = end_s
        return result

    def _start_s(self, batch: Batch) -> float:
        """Rows that decode were here when the last step ended; a prompt may have come since."""
        arrived_s = max((one.arrival_s for one in batch.requests[: batch.num_prefill_rows]), default=0.0)
        return max(self._free_s, arrived_s, self._clock.now() - self._max_lag_s)

    # KV and tokens. -------------------------------------------------------------------------------------

    def _compute(self, batch: Batch) -> UInts:
        """Write the batch's KV; returns that of each row's last token, shape (B,)."""
        starts = batch.starts.astype(np.intp)
        stops = starts + batch.lengths
        self._reach(int(stops.max()))
        firsts = np.cumsum(batch.lengths) - batch.lengths
        added = batch.input_ids.astype(np.uint64) + np.uint64(1)
        singles = batch.lengths == 1
        for row in np.flatnonzero(~singles):
            start, stop = starts[row], stops[row]
            terms = added[firsts[row] : firsts[row] + stop - start] * self._powers[start:stop]
            if start:
                terms[:1] += self._kv[self._places(batch, row, np.array([start - 1]))]
            self._kv[self._places(batch, row, np.arange(start, stop))] = np.add.accumulate(terms)
        rows, at = np.flatnonzero(singles), starts[singles]  # all decode rows at once
        before = np.where(at > 0, self._kv[self._places(batch, rows, np.maximum(at - 1, 0))], np.uint64(0))
        self._kv[self._places(batch, rows, at)] = before + added[firsts[rows]] * self._powers[at]
        last: UInts = self._kv[self._places(batch, np.arange(batch.num_rows), stops - 1)]
        return last

    def _places(self, batch: Batch, rows: Places | np.intp, positions: Places) -> Places:
        """Where the KV of `positions` of rows of the batch is."""
        pages = batch.page_table[batch.rows[rows], positions // self._page_size].astype(np.intp)
        places: Places = pages * self._page_size + positions % self._page_size
        return places

    def _tokens_after(self, kv: UInts) -> npt.NDArray[np.int64]:
        count = np.uint64(self._vocab_size - self._first_token_id)
        tokens: npt.NDArray[np.int64] = (_scrambled(kv ^ self._seed) % count).astype(np.int64)
        return tokens + self._first_token_id

    def _end_some(self, batch: Batch, kv: UInts, token_ids: npt.NDArray[np.int32]) -> None:
        """Let chance, which is a function of the KV too, end requests that heed the end of sequence."""
        if not self._eos_below:
            return
        chances = _scrambled(~kv ^ self._seed)
        for row in np.flatnonzero(batch.samples & (chances <= self._eos_below)):
            if self._heeds_eos(batch.requests[row]):
                token_ids[row] = self._eos_token_id

    def _heeds_eos(self, request: Request) -> bool:
        return (
            self._eos_token_id in request.stop_token_ids
            and request.num_output_tokens + 1 >= request.sampling.min_new_tokens
        )

    def _reach(self, num_positions: int) -> None:
        if num_positions > len(self._powers):
            self._powers = _powers(2 * num_positions)

    # Logprobs. ------------------------------------------------------------------------------------------

    def _add_logprobs(self, batch: Batch, result: StepResult) -> None:
        for row, request in enumerate(batch.requests):
            num_top = request.sampling.num_logprobs
            if num_top is None:
                continue
            if batch.samples[row]:
                result.logprobs[row] = _certain(int(result.token_ids[row]), num_top)
            if request.return_prompt_logprobs and batch.starts[row] < request.num_prompt_tokens:
                result.prompt_logprobs[row] = self._prompt_logprobs(batch, row, num_top)

    def _prompt_logprobs(self, batch: Batch, row: int, num_top: int) -> list[TokenLogprobs]:
        """See `StepResult.prompt_logprobs`."""
        prompt = batch.requests[row].prompt_token_ids
        start = int(batch.starts[row])
        stop = min(start + int(batch.lengths[row]), len(prompt) - 1)
        predicted = self._tokens_after(self._kv[self._places(batch, np.intp(row), np.arange(start, stop))])
        entries = [TokenLogprobs(int(prompt[0]), None)] if start == 0 else []
        for token, certain in zip(prompt[start + 1 : stop + 1].tolist(), predicted.tolist(), strict=True):
            logprob = 0.0 if token == certain else IMPOSSIBLE_LOGPROB
            entries.append(TokenLogprobs(token, logprob, _certain(certain, num_top).top))
        return entries


def _certain(token_id: int, num_top: int) -> TokenLogprobs:
    """However many likeliest tokens are asked for: there is one."""
    return TokenLogprobs(token_id, 0.0, ((token_id, 0.0),) if num_top else ())


def _powers(count: int) -> UInts:
    """_TOKEN_FACTOR to the 1st … count-th, modulo 2^64."""
    return np.multiply.accumulate(np.full(count, _TOKEN_FACTOR, dtype=np.uint64))


def _scrambled(values: UInts) -> UInts:
    """Each value's bits mixed: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
