"""The seams: the few places where one part can be swapped for another. (Clock lives in `clock.py`.)

Every seam has at least two real implementations and one contract test class in `tests/contracts/`.
Synchronous, all of them: the shells that drive them own threads and event loops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prefixlab.core.batch import Batch, StepResult
    from prefixlab.core.kv_events import KVEvent
    from prefixlab.core.target import Chunk, Sent, TargetRequest


class Runner(Protocol):
    """Computes one batch: a model on CPU or CUDA, a simulation, or a fake for tests."""

    @property
    def vocab_size(self) -> int:
        """Valid token ids are 0 … vocab_size - 1."""
        ...

    def run(self, batch: Batch) -> StepResult:
        """Compute the batch's tokens into their pages and sample where asked.

        Blocks until done. Keeps no state of a request between calls except KV in pages: what it needs of a
        request it reads from `batch.requests`, so a retracted request resumes on any runner.

        Raises:
            EngineError: the step failed as a whole; no row of it counts as computed.
        """
        ...


class EventSink(Protocol):
    """Takes KV events in the order they happened: a ZeroMQ publisher, a router's index, a list."""

    def emit(self, events: Sequence[KVEvent]) -> None:
        """Hand over events. Must not block or raise; a sink that drops counts what it dropped."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without adding special tokens; special tokens spelt out in it become their ids."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; bytes that are not (yet) valid UTF-8 become U+FFFD."""
        ...

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> str:
        """The prompt text for a conversation, ready for the assistant's turn.

        Raises:
            InvalidRequestError: the model has no chat template, or the template refuses the messages.
        """
        ...


class Target(Protocol):
    """A server under measurement, or the engine in this process: send a request, get its stream."""

    def stream(self, request: TargetRequest) -> AsyncIterator[Sent | Chunk]:
        """Send `request`; yield one Sent, then its chunks as they arrive. (An async generator: no `await`.)

        Raises:
            TargetError: it answered with an error; the message quotes it.
        """
        ...
