"""What to send and how to pace it: the input of every driver. Plain data, no I/O.

Owns the words of pacing. *Intended* is when a request should go: its `offset_s` from the run's start in open
loop; in closed loop the moment its turn came, which is when the answer that freed its slot ended.

Invariant: a plan says everything that is sent; a driver adds nothing to it and leaves nothing out.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefixlab.bench.records.record import Outcome, Record
from prefixlab.core.target import TargetRequest


@dataclass(frozen=True, slots=True)
class Planned:
    """A request, and what the workload knows about it.

    Attributes:
        offset_s: when to send it, from the run's start. Open loop only.
        after: index in the plan of the request whose end this one waits for, and then `delay_s` longer (think
            time). None: it waits for nobody. Requests that wait for each other are a session: in closed loop
            a slot is a session's from its first turn to the end of its last, think time included.
        continues: `request` holds only what is new; its prompt is that of `after`, then what the server
            answered to it, then this. Both are of one form (ids, text or messages), and `after` has a
            `session_id`. A turn whose `after` did not succeed is unsent, and so is all behind it.
        server: which of several servers it is for.
    """

    request: TargetRequest
    num_prompt_tokens: int
    num_expected_cached_tokens: int | None = None
    offset_s: float = 0.0
    after: int | None = None
    delay_s: float = 0.0
    continues: bool = False
    session_id: str | None = None
    turn: int | None = None
    server: int = 0

    def unsent(self, intended_s: float) -> Record:
        return Record(
            request_id=self.request.request_id,
            outcome=Outcome.UNSENT,
            intended_s=intended_s,
            planned_prompt_tokens=self.num_prompt_tokens,
            planned_output_tokens=self.request.max_new_tokens,
            num_expected_cached_tokens=self.num_expected_cached_tokens,
            session_id=self.session_id,
            turn=self.turn,
        )


@dataclass(frozen=True, slots=True)
class Load:
    """How a plan is paced.

    Attributes:
        open_loop: each request goes at its `offset_s`, whatever became of the others; else as soon as one of
            `max_concurrency` slots is free, in the plan's order.
        max_concurrency: requests in flight at once, over all workers; in closed loop, sessions under way,
            where requests wait for each other. In open loop a cap: a request that is due waits for a slot,
            and its latency from intent includes the wait. None: no limit.
        num_workers: client processes; None lets the driver choose.
        stop_after_s: send nothing after this long; what was not sent by then is unsent.
        retries: further attempts after a failure that brought no byte of an answer, or 429 or 503. Counted.
    """

    open_loop: bool
    max_concurrency: int | None = None
    num_workers: int | None = None
    stop_after_s: float | None = None
    retries: int = 0
