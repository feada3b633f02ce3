"""How well the client itself did: what a reader checks before believing the server's numbers. Plain data.

Owns the figures and how those of several workers merge. Makes no judgement: reports and the doctor do.

Invariant: merging pools histograms and sums counts, it never averages percentiles.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from prefixlab.core.errors import ConfigError
from prefixlab.core.histogram import Histogram


@dataclass(frozen=True, slots=True)
class NodeClock:
    """One of several machines that requests were sent from, and how its monotonic clock stood to ours.

    Only the schedule crosses machines: a latency is the difference of two stamps of one machine.

    Attributes:
        node: the machine, for people.
        num_workers: client processes on it.
        offset_s: its clock minus the driver's, as the run began.
        uncertainty_s: how wrong that may be at most.
        drift_s: how much the offset had changed by the end; None if nobody was there to ask any more.
        drift_uncertainty_s: how wrong that may be at most.
        lost: what became of the machine, if it was lost in mid-run.
    """

    node: str
    num_workers: int
    offset_s: float
    uncertainty_s: float
    drift_s: float | None = None
    drift_uncertainty_s: float = 0.0
    lost: str | None = None


@dataclass(slots=True)
class ClientHealth:
    """Of one run, or of one worker of it.

    Attributes:
        stamps: where arrival times come from: "kernel", "process", or "mixed"; "target" where there is no
            client between, because the target in this process stamps its own answers.
        read_lag_s: process time of a read minus the kernel's stamp of its data: how late we were to look.
            Harmless to kernel stamps until reads merge. Empty without kernel stamps.
        send_lag_s: how late requests went out through this client's own fault: from the moment a request was
            due and had a slot and a connection, to its first byte written. Of requests that became ready at
            one moment (as a closed loop begins, or in a burst) the first counts: the others must follow it.
        compose_s: how long it took to read an answer and make the next turn of its session out of it, as the
            answer ended. Part of the send lag where there is no think time. Empty without such turns.
        num_reads: reads that brought bytes of an answer.
        num_merged_reads: reads that brought several transfer chunks at once, so one stamp covers them all.
        num_connects, num_reused: connections opened, and requests that found one open.
        num_retries: attempts beyond the first.
        num_resends: requests sent again at once, because the server had closed the idle connection they took;
            such an attempt had no part of an answer, and is no retry.
        num_clock_steps: jumps of the wall clock against the monotonic one; around each, process stamps serve.
        clock_drift_ppm: drift of the wall clock against the monotonic one, largest seen; None if unknown.
        peak_in_flight, peak_queued: most requests sent and unanswered, and due and unsent, at once.
        cpu_s, wall_s: CPU time and duration of the socket loops (sums over workers).
        nodes: the machines, where there were several: one entry each per run.
        num_workers: client processes. 0 in a part that a decoder measured, whose socket loop counts itself.
        cap_is_shared: in open loop, each of several processes has its part of the cap, and a request that is
            due waits for a slot of its own process.
    """

    stamps: str = "process"
    read_lag_s: Histogram = field(default_factory=Histogram)
    send_lag_s: Histogram = field(default_factory=Histogram)
    compose_s: Histogram = field(default_factory=Histogram)
    num_reads: int = 0
    num_merged_reads: int = 0
    num_connects: int = 0
    num_reused: int = 0
    num_retries: int = 0
    num_resends: int = 0
    num_clock_steps: int = 0
    clock_drift_ppm: float | None = None
    peak_in_flight: int = 0
    peak_queued: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    nodes: list[NodeClock] = field(default_factory=list)
    num_workers: int = 1
    cap_is_shared: bool = False

    def merge(self, other: ClientHealth) -> None:
        """Add what another worker, or another part of the same one, measured."""
        if other.num_workers and self.num_workers and self.stamps != other.stamps:
            self.stamps = "mixed"
        elif other.num_workers:
            self.stamps = other.stamps
        drifts = [ppm for ppm in (self.clock_drift_ppm, other.clock_drift_ppm) if ppm is not None]
        self.clock_drift_ppm = max(drifts, key=abs, default=None)
        self.read_lag_s.merge(other.read_lag_s)
        self.send_lag_s.merge(other.send_lag_s)
        self.compose_s.merge(other.compose_s)
        self.nodes = [*self.nodes, *other.nodes]
        self.cap_is_shared |= other.cap_is_shared
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> str:
        """One line."""
        state = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return json.dumps({name: _to_state(value) for name, value in state.items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> ClientHealth:
        """What `to_json` said.

        Raises:
            ConfigError: it is something else.
        """
        try:
            state: dict[str, Any] = json.loads(text)
            for name in _HISTOGRAMS:
                state[name] = Histogram.from_state(state[name])
            state["nodes"] = [NodeClock(**node) for node in state.get("nodes", ())]
            return cls(**state)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"not a client's health: {text[:100]!r} ({error!r})") from None


def _to_state(value: object) -> object:
    if isinstance(value, Histogram):
        return value.to_state()
    return [dataclasses.asdict(node) for node in value] if isinstance(value, list) else value


_HISTOGRAMS = ("read_lag_s", "send_lag_s", "compose_s")
_SUMS = tuple(
    item.name
    for item in dataclasses.fields(ClientHealth)
    if item.name not in ("stamps", "clock_drift_ppm", "nodes", "cap_is_shared", *_HISTOGRAMS)
)


def one_after_another(parts: list[ClientHealth]) -> ClientHealth:
    """The health of stretches of one run: sums as over workers, but the same workers did all of them."""
    total = ClientHealth(num_workers=0)
    for part in parts:
        total.merge(part)
    stamps = {part.stamps for part in parts}
    total.stamps = stamps.pop() if len(stamps) == 1 else "mixed" if stamps else total.stamps
    for name in ("num_workers", "peak_in_flight", "peak_queued"):
        setattr(total, name, max((getattr(part, name) for part in parts), default=0))
    return total
