"""The next turn of a session, made out of the one before and what was answered to it. No I/O.

Owns what a conversation's history is: prompt, reply, what is new, in the form the prompt had. Token ids stay
the ids the server named, so nothing of a history is ever tokenised again; messages get the reply as the
assistant's; text gets it behind.

Invariant: the prompt of a turn begins with the whole prompt of the turn before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prefixlab.bench.targets.dialects import Reply
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import TargetError
from prefixlab.core.target import Chunk, TargetRequest


class NoTokenIdsError(TargetError):
    """The server did not name the tokens that it answered with, so no prompt of ids can go on from them."""

    def __init__(self) -> None:
        super().__init__(
            "the answer does not name all its token ids: use --backend openai-chat, where sessions go on in "
            "messages, or a server that returns ids (/generate of SGLang and prefixlab; completions with "
            "return_token_ids of vLLM, SGLang and prefixlab)"
        )


def next_request(before: TargetRequest, reply: Reply, new: TargetRequest) -> TargetRequest:
    """`new` with its whole prompt.

    Args:
        before: the turn before, whole.
        new: holds only what is new, in the form that `before` has.

    Raises:
        NoTokenIdsError: prompts are token ids, and the reply has none.
    """
    if before.prompt_token_ids is not None:
        assert new.prompt_token_ids is not None, f"{new.request_id}: continues token ids with something else"
        if reply.token_ids is None:
            raise NoTokenIdsError
        ids = (before.prompt_token_ids, as_token_ids(reply.token_ids), new.prompt_token_ids)
        return replace(new, prompt_token_ids=np.concatenate(ids))
    if before.messages is not None:
        assert new.messages is not None, f"{new.request_id}: continues messages with something else"
        said = {"role": "assistant", "content": reply.text}
        return replace(new, messages=(*before.messages, said, *new.messages))
    assert before.prompt_text is not None and new.prompt_text is not None, (
        f"{new.request_id}: continues text with something else"
    )
    return replace(new, prompt_text=before.prompt_text + reply.text + new.prompt_text)


def reply_of_chunks(chunks: Sequence[Chunk]) -> Reply:
    """What a stream said, its reasoning apart."""
    text = "".join(chunk.text for chunk in chunks)
    if any(chunk.carries_tokens and chunk.token_ids is None for chunk in chunks):
        return Reply(text)
    return Reply(text, [token for chunk in chunks for token in chunk.token_ids or ()])
