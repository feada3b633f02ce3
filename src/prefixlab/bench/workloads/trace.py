"""Traces in Mooncake's format: what was asked when, how long it was, and which blocks it shared.

Owns reading, scaling, and the token ids that stand for a trace's blocks. A trace holds no text, only the
identity of each block of its prompts; so every block becomes made-up tokens, the same wherever the same block
stands.

Invariant: two prompts share exactly the tokens of the blocks they share from the start, and not one more:
where they part, the next tokens differ. Lengths are exact, after the scaling that the report names.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from prefixlab.bench.workloads.tokens import TokenStream, Vocabulary, with_first
from prefixlab.core.block_hash import TokenIds, block_digests
from prefixlab.core.errors import ConfigError
from prefixlab.core.hit_oracle import expected_cached_tokens

MAX_BLOCK_BITS = 24
_FIRSTS, _BLOCK, _TAIL, _PROBE = range(4)


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line of a trace.

    Attributes:
        offset_s: seconds after the trace's first request.
        hash_ids: one per block of the prompt, from its start.
    """

    offset_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    hash_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time, and what one hash id stands for.

    Attributes:
        block_size: tokens per hash id.
        requests: lengths may exceed the blocks named: what lies behind the last one is the request's own.
    """

    name: str
    block_size: int
    requests: tuple[TraceRequest, ...]


def read_trace(path: Path, *, num_requests: int = 0, block_size: int | None = None) -> Trace:
    """Read the first `num_requests` (0: all) of a `.jsonl` or `.jsonl.gz` file.

    Raises:
        ConfigError: the file, or a line of it, cannot be used; it names both.
    """
    requests: list[TraceRequest] = []
    places: list[str] = []
    first_ms = 0.0
    for number, text in _lines(path):
        if num_requests and len(requests) == num_requests:
            break
        places.append(f"{path}:{number}")
        try:
            line = msgspec.json.decode(text, type=_Line)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            fields = ", ".join(_Line.__struct_fields__)
            raise ConfigError(
                f"{places[-1]}: not a line of Mooncake's format, a JSON object of {fields}: {error}"
            ) from None
        if not requests:
            first_ms = line.timestamp
        offset_s = (line.timestamp - first_ms) / 1e3
        problem = _problem(line, offset_s, requests[-1].offset_s if requests else 0.0)
        if problem:
            raise ConfigError(f"{places[-1]}: {problem}")
        requests.append(TraceRequest(offset_s, line.input_length, line.output_length, tuple(line.hash_ids)))
    if not requests:
        raise ConfigError(f"{path} holds no request")
    size = block_size or infer_block_size(path, requests)
    for place, request in zip(places, requests, strict=True):
        full, rest = divmod(request.num_prompt_tokens, size)
        if not full <= len(request.hash_ids) <= full + bool(rest):
            raise ConfigError(
                f"{place}: {request.num_prompt_tokens} tokens are {full} full blocks of {size}"
                f"{' and a part' if rest else ''}, but {len(request.hash_ids)} hash ids are given"
            )
    return Trace(path.name, size, tuple(requests))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold anything, with their numbers."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, text
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _problem(line: _Line, offset_s: float, previous_s: float) -> str | None:
    if line.input_length < 1 or line.output_length < 1:
        return f"lengths must be at least 1, not {line.input_length} and {line.output_length}"
    if any(hash_id < 0 for hash_id in line.hash_ids):
        return f"hash ids must not be negative, not {min(line.hash_ids)}"
    if offset_s < previous_s:
        return f"time goes back, to {line.timestamp} ms"
    return None


def infer_block_size(path: Path, requests: Sequence[TraceRequest]) -> int:
    """The block size that explains every request's number of ids, full blocks only or a last partial one too.

    Of several that do, the one power of two; ConfigError where that leaves none or more than one.
    """
    lowest, highest = 1, 1 << MAX_BLOCK_BITS
    for request in requests:
        tokens, count = request.num_prompt_tokens, len(request.hash_ids)
        lowest = max(lowest, tokens // (count + 1) + 1)
        if count > 1:
            highest = min(highest, (tokens - 1) // (count - 1))
    powers = [1 << k for k in range(MAX_BLOCK_BITS + 1) if lowest <= 1 << k <= highest]
    if lowest == highest:
        return lowest
    if len(powers) == 1:
        return powers[0]
    raise ConfigError(f"{path}: lengths and numbers of hash ids fit no one block size; give --block-size")


@dataclass(frozen=True, slots=True)
class Fitting:
    """What was done to make a trace fit: for the report."""

    length_scale: float
    max_len: int | None
    num_cut: int


def fit_trace(
    trace: Trace, *, length_scale: float = 1.0, max_len: int | None = None
) -> tuple[Trace, Fitting]:
    """Scale blocks and lengths together, then cut what is still too long.

    Scaling keeps the sharing: a block becomes a smaller block. Cutting takes the end of prompts, so what
    remains is shared as before; output is cut to half of `max_len` first.

    Raises:
        ConfigError: the scaled block is not a whole number of tokens.
    """
    block_size = round(trace.block_size * length_scale)
    if block_size < 1 or abs(block_size - trace.block_size * length_scale) > 1e-9:
        raise ConfigError(
            f"--length-scale {length_scale:g} makes {trace.block_size * length_scale:g} tokens of a block of "
            f"{trace.block_size}; it must be a whole number, at least 1"
        )
    requests, num_cut = [], 0
    for request in trace.requests:
        full, rest = divmod(request.num_prompt_tokens, trace.block_size)
        num_prompt = max(1, full * block_size + round(rest * length_scale))
        num_output = max(1, round(request.num_output_tokens * length_scale))
        if max_len is not None and num_prompt + num_output > max_len:
            num_output = min(num_output, max(1, max_len // 2))
            num_prompt = min(num_prompt, max_len - num_output)
            num_cut += 1
        num_ids = -(-num_prompt // block_size)
        requests.append(TraceRequest(request.offset_s, num_prompt, num_output, request.hash_ids[:num_ids]))
    return Trace(trace.name, block_size, tuple(requests)), Fitting(length_scale, max_len, num_cut)


@dataclass(slots=True)
class _Place:
    """Where one prefix ends: which of its siblings it is, and what continues it."""

    rank: int
    next: dict[int, _Place] = field(default_factory=dict)


def make_prompts(trace: Trace, vocabulary: Vocabulary, *, seed: int, salt: int = 0) -> list[TokenIds]:
    """Token ids for every request, each shape (num_prompt_tokens,).

    Raises:
        ConfigError: more prompts part at one place than the vocabulary has ids to tell them apart.
    """
    firsts = _first_tokens(vocabulary, seed, salt)[1:]
    root = _Place(0)
    prompts = []
    for number, request in enumerate(trace.requests):
        place, parts, left = root, [], request.num_prompt_tokens
        for index in range(-(-left // trace.block_size)):
            if index < len(request.hash_ids):
                key = request.hash_ids[index]
                stream = TokenStream(vocabulary, seed, salt, _BLOCK, key)
            else:  # behind the last id: nobody else's
                key = -1 - number
                stream = TokenStream(vocabulary, seed, salt, _TAIL, number)
            place = place.next.setdefault(key, _Place(len(place.next)))
            if place.rank == len(firsts):
                raise ConfigError(
                    f"more than {len(firsts):,} prompts part at one place, and the vocabulary has only that "
                    "many ids to tell them apart"
                )
            block = with_first(int(firsts[place.rank]), stream.draw(trace.block_size))
            parts.append(block[:left])
            left -= len(parts[-1])
        prompts.append(np.concatenate(parts))
    return prompts


def make_probe(vocabulary: Vocabulary, num_tokens: int, *, seed: int, salt: int = 0) -> TokenIds:
    """A prompt for proving the cache cold: no prompt of the trace begins as it does. Shape (num_tokens,)."""
    first = int(_first_tokens(vocabulary, seed, salt)[0])
    return with_first(first, TokenStream(vocabulary, seed, salt, _PROBE).draw(num_tokens))


def _first_tokens(vocabulary: Vocabulary, seed: int, salt: int) -> TokenIds:
    """All ids in random order: the probe's first token, then one for each rank among siblings."""
    return TokenStream(vocabulary, seed, salt, _FIRSTS).distinct(len(vocabulary), "blocks")


def ideal_cached_tokens(prompts: Sequence[TokenIds], page_size: int) -> list[int]:
    """What an infinite cache would serve of each prompt, all earlier ones having finished. In order."""
    seen: set[bytes] = set()
    expected = []
    for prompt in prompts:
        digests = block_digests(prompt, page_size, b"")
        num_shared = next((i for i, digest in enumerate(digests) if digest not in seen), len(digests))
        expected.append(expected_cached_tokens(num_shared * page_size, len(prompt), page_size))
        seen.update(digests)
    return expected
