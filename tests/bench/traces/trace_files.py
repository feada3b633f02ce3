"""Small trace files, and where the real ones are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from prefixlab.bench.traces.trace import Trace

TRACES = Path(os.environ.get("PREFIXLAB_TRACES") or Path(__file__).parents[4] / "shared" / "traces")

MOONCAKE = {"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [0, 1, 2]}
BAILIAN = {
    "chat_id": 1,
    "parent_chat_id": -1,
    "timestamp": 0.5,
    "input_length": 40,
    "output_length": 5,
    "type": "text",
    "turn": 1,
    "hash_ids": [0, 1, 2],
}
AGENTIC = {
    "id": "a",
    "block_size": 16,
    "tool_tokens": 3,
    "system_tokens": 4,
    "requests": [
        {"t": 0.0, "isl": 40, "osl": 5, "runs": [[1, 2]], "api_time": 1.5, "think_time": 0.0},
        {"t": 40.0, "isl": 70, "osl": 6, "runs": [[1, 1], [7, 3]], "api_time": 1.5, "think_time": 3.0},
    ],
}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio"


def write(path: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n")
    return path


def mooncake(timestamp: float, length: int, ids: list[int], **more: object) -> dict[str, object]:
    line = {"timestamp": timestamp, "input_length": length, "output_length": 5, "hash_ids": ids}
    return {**line, **more}


def real_trace(name: str) -> Path:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"{path} is not there (PREFIXLAB_TRACES names the folder of traces)")
    return path


def ids_of(trace: Trace) -> list[list[int]]:
    """Of each request."""
    return [part.tolist() for part in np.split(trace.hash_ids, trace.starts[1:-1])]


def a_trace(*requests: tuple[int, list[int]], block_size: int = 16, output: int = 4) -> Trace:
    """Of (prompt tokens, ids), one every second."""
    counts = [len(ids) for _, ids in requests]
    return Trace(
        name="t",
        block_size=block_size,
        offsets_s=np.arange(len(requests), dtype=np.float64),
        prompt_tokens=np.array([length for length, _ in requests], np.int64),
        output_tokens=np.full(len(requests), output, np.int64),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        hash_ids=np.array([i for _, ids in requests for i in ids], np.int64),
    )
