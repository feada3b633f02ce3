"""What faults make of an answer's JSON, and of the events of a stream. Pure: no waiting, no sockets.

Owns where, in the native API and in OpenAI's, counts, texts and reasons stand.

Invariant: without a fault an answer is what it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec

from prefixlab.simulator.faults.spec import Faults

DONE = b"[DONE]"
_DATA = b"data: "
_LIMITS = ("max_new_tokens", "max_tokens", "max_completion_tokens")


def shorten(body: dict[str, Any], faults: Faults, chance: random.Random) -> bool:
    """Limit a request that ignores the end of sequence to where it would have come. Whether it was."""
    is_shorter = False
    sampling = body.get("sampling_params")
    parts = sampling if isinstance(sampling, list) else [sampling] if isinstance(sampling, dict) else [body]
    for part in parts:
        for name in _LIMITS:
            asked = part.get(name) if isinstance(part, dict) and part.get("ignore_eos") else None
            if not isinstance(asked, int):
                continue
            length = next((n for n in range(1, asked) if chance.random() < faults.eos_rate), asked)
            part[name] = length
            is_shorter = is_shorter or length < asked
    return is_shorter


def falsify(answer: Any, faults: Faults, *, was_shortened: bool) -> None:
    """In place: one answer, one event, or a list of answers."""
    if isinstance(answer, list):
        for one in answer:
            falsify(one, faults, was_shortened=was_shortened)
        return
    if not isinstance(answer, dict):
        return
    if isinstance(meta := answer.get("meta_info"), dict):
        _falsify_counts(meta, meta, faults)
        if faults.hides_cached:
            meta["cached_tokens_details"] = None
        reason = meta.get("finish_reason")
        if was_shortened and isinstance(reason, dict) and reason.get("type") == "length":
            meta["finish_reason"] = {"type": "stop", "matched": None}
    if isinstance(usage := answer.get("usage"), dict):
        details = usage.get("prompt_tokens_details")
        _falsify_counts(usage, details if isinstance(details, dict) else {}, faults)
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        if faults.hides_cached:
            usage["prompt_tokens_details"] = None
    if was_shortened:
        for choice in answer.get("choices", ()):
            if choice.get("finish_reason") == "length":
                choice["finish_reason"] = "stop"


def _falsify_counts(prompt: dict[str, Any], cached: dict[str, Any], faults: Faults) -> None:
    prompt["prompt_tokens"] += faults.num_miscounted
    number = cached.get("cached_tokens")
    if isinstance(number, int):
        said = int(number * faults.cached_factor) + faults.cached_added
        cached["cached_tokens"] = None if faults.hides_cached else min(said, prompt["prompt_tokens"])


def events_of(chunk: bytes) -> list[bytes]:
    """What stands behind `data: ` of each event; the server writes whole events."""
    return [event.removeprefix(_DATA) for event in chunk.split(b"\n\n") if event]


def as_chunk(events: Iterable[bytes]) -> bytes:
    return b"".join(_DATA + event + b"\n\n" for event in events)


class Stream:
    """One stream's events as faults leave them: falsified, and so many put into one."""

    def __init__(self, faults: Faults, *, was_shortened: bool) -> None:
        self._faults = faults
        self._was_shortened = was_shortened
        self._held: dict[
            int, tuple[int, dict[str, Any]]
        ] = {}  # by choice: how many events, and what they say

    def of(self, events: Iterable[bytes]) -> list[bytes]:
        """What is sent in their place; the rest is held until more come."""
        out: list[bytes] = []
        for event in events:
            if event == DONE:
                out += [*self._all_held(), event]
                continue
            answer = msgspec.json.decode(event)
            falsify(answer, self._faults, was_shortened=self._was_shortened)
            out += self._bundled(answer)
        return out

    def _bundled(self, answer: dict[str, Any]) -> list[bytes]:
        index, ended = _place(answer)
        if index is None:
            return [*self._all_held(), msgspec.json.encode(answer)]
        number, before = self._held.pop(index, (0, None))
        joined = answer if before is None else _joined(before, answer)
        if ended or number + 1 >= self._faults.bundle:
            return [msgspec.json.encode(joined)]
        self._held[index] = (number + 1, joined)
        return []

    def _all_held(self) -> list[bytes]:
        held = [msgspec.json.encode(answer) for _, answer in self._held.values()]
        self._held.clear()
        return held


def _place(answer: dict[str, Any]) -> tuple[int | None, bool]:
    """Which choice an event is of (None: of none), and whether it ends it."""
    if isinstance(meta := answer.get("meta_info"), dict):
        return int(answer.get("index", 0)), meta.get("finish_reason") is not None
    choices = answer.get("choices")
    if not choices:
        return None, False
    return int(choices[0]["index"]), choices[0].get("finish_reason") is not None


def _joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Two events of one choice as one. The native API tells totals, OpenAI's what is new."""
    if "meta_info" in now:
        return now
    old, new = before["choices"][0], now["choices"][0]
    if "delta" in new:
        new["delta"] = {**old["delta"], "content": old["delta"]["content"] + new["delta"]["content"]}
    else:
        new["text"] = old["text"] + new["text"]
    if old.get("logprobs") and new.get("logprobs"):
        new["logprobs"] = {
            name: old["logprobs"][name] + piece if isinstance(piece, list) else piece
            for name, piece in new["logprobs"].items()
        }
    else:
        new["logprobs"] = old.get("logprobs") or new.get("logprobs")
    return now
