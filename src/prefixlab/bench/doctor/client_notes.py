"""What a reader should know of the client before believing the server's numbers. Pure.

Owns the thresholds from which the client's own health is worth a sentence; `loadgen/health.py` has the
figures, and reports show them all.

Invariant: a healthy client says nothing. The same trouble is the same sentence, so that repeats of a point
say it once.
"""

from __future__ import annotations

from prefixlab.bench.loadgen.health import ClientHealth, NodeClock

MAX_MERGED_SHARE = 0.01
"""Of reads: a merged one hides the gap between the chunks it brought, so p99 of ITL stands on the others."""
MAX_READ_LAG_S = 0.005
MAX_CPU_SHARE = 0.5
"""Of its core. Above either, reads merge because the client comes late to them; below, it was there in time,
and what one read brought had come together."""
FEWEST_TOGETHER = 100
"""Reads of pieces that came together that are worth a word."""
MAX_SEND_LAG_S = 0.005
"""In open loop, at p99. Latency from the schedule includes the lag, latency from sending does not."""
FEWEST_LATE = 5
"""Requests that left late: of a small run, one alone is more than 1 %."""
MAX_IDLE_SHARE = 0.05
"""In closed loop, where latency is from sending: of the time that slots were there to be used."""
MAX_CLOCK_ERROR_S = 0.005
"""Of another machine's clock: so far off the schedule requests from there may have left."""


def client_notes(health: ClientHealth, *, open_loop: bool) -> list[str]:
    """One sentence per thing that distorts, or may distort, what was measured. None of a target in this
    process, which shares the interpreter with its client: that is known."""
    if health.stamps == "target":
        return []
    notes = []
    if health.stamps in ("process", "mixed"):
        some = "some arrival times are" if health.stamps == "mixed" else "arrival times are"
        notes.append(f"{some} those of the client's reads, not the kernel's: they include how late it looked")
    notes += _merged_notes(health)
    if health.num_clock_steps:
        notes.append(
            "the wall clock was set during the run: around that, arrival times are of the client's reads"
        )
    if open_loop and send_lag_s(health) > MAX_SEND_LAG_S:
        notes.append(
            f"more than 1% of requests left over {MAX_SEND_LAG_S * 1e3:g} ms late through the client's own "
            f"fault: {_why_late(health)}"
        )
    if not open_loop and health.send_lag_s.total > MAX_IDLE_SHARE * slot_time_s(health):
        notes.append(
            f"for more than {MAX_IDLE_SHARE:.0%} of the time fewer requests were in flight than asked for, "
            f"through the client's own fault: {_why_late(health)}"
        )
    if health.cap_is_shared:
        notes.append(
            "client processes share the cap on concurrency: a request may have waited for a slot of its own "
            "while another's was free. --num-workers 1 lets none wait so"
        )
    if health.num_retries:
        notes.append(f"{health.num_retries:,} attempts were repeats of failed ones")
    return notes + _node_notes(health.nodes)


def _merged_notes(health: ClientHealth) -> list[str]:
    if health.num_merged_reads <= MAX_MERGED_SHARE * health.num_reads:
        return []
    share = f"more than {MAX_MERGED_SHARE:.0%} of reads brought several pieces under one arrival time"
    is_late = health.read_lag_s.count and health.read_lag_s.quantile(0.99) > MAX_READ_LAG_S
    if is_late or health.cpu_s > MAX_CPU_SHARE * health.wall_s:
        needs = "The client needs more processes (--num-workers), or a core of its own"
        return [f"{share}: ITL is blurred. {needs}"]
    if health.num_merged_reads < FEWEST_TOGETHER:
        return []
    return [f"{share}: the client was in time, so the server or the network sent them together"]


def send_lag_s(health: ClientHealth) -> float:
    """What more than 1 % of requests, and at least FEWEST_LATE of them, left late by, or more."""
    count = health.send_lag_s.count
    if count < FEWEST_LATE:
        return 0.0
    return health.send_lag_s.quantile(min(0.99, 1 - (FEWEST_LATE - 0.5) / count))


def _why_late(health: ClientHealth) -> str:
    if health.cpu_s > MAX_CPU_SHARE * health.wall_s:
        return "it is overloaded"
    return "it was late, though its core was idle for the most part: something else had the machine"


def slot_time_s(health: ClientHealth) -> float:
    """How long slots were there, all together, as far as they were ever used."""
    return health.peak_in_flight * health.wall_s / max(1, health.num_workers)


def _node_notes(nodes: list[NodeClock]) -> list[str]:
    bound = f"{MAX_CLOCK_ERROR_S * 1e3:g} ms"
    vague = {node.node for node in nodes if node.uncertainty_s > MAX_CLOCK_ERROR_S}
    moved = {
        node.node
        for node in nodes
        if node.drift_s is not None and abs(node.drift_s) - node.drift_uncertainty_s > MAX_CLOCK_ERROR_S
    }
    notes = []
    if vague:
        notes.append(
            f"the clock of {_and(vague)} is known to no better than {bound}: requests from there may have "
            "left that much off the schedule. Latencies are not affected"
        )
    if moved:
        notes.append(
            f"the clock of {_and(moved)} moved by more than {bound} against ours during the run: requests "
            "from there left that much off the schedule. Latencies are not affected"
        )
    return notes + sorted({f"{node.lost}: its unfinished requests failed" for node in nodes if node.lost})


def _and(names: set[str]) -> str:
    return " and ".join(sorted(names))
