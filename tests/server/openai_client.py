"""What the official client must be able to do, against any server of ours: a fake's, or the real process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, you"}]
GREEDY = {"ignore_eos": True}


def check_sync_client(url: str, model: str) -> None:
    """Models, completions of every form, chat, streams, logprobs, errors."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [one.id for one in client.models.list()] == [model]
        assert client.models.retrieve(model).id == model

        prompt = [5, 6, 7, 8, 9] * 8
        whole = client.completions.create(
            model=model, prompt=prompt, max_tokens=5, temperature=0, extra_body=GREEDY
        )
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (40, 5)
        assert whole.choices[0].finish_reason == "length"
        again = client.completions.create(
            model=model, prompt=prompt, max_tokens=5, temperature=0, extra_body=GREEDY, user="somebody"
        )
        assert again.choices[0].text == whole.choices[0].text
        assert again.usage is not None and again.usage.prompt_tokens_details is not None
        assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= 32

        pieces = list(
            client.completions.create(
                model=model,
                prompt=prompt,
                max_tokens=5,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=GREEDY,
            )
        )
        text = "".join(choice.text for piece in pieces for choice in piece.choices)
        assert text == whole.choices[0].text
        assert pieces[-1].usage is not None and pieces[-1].usage.total_tokens == 45

        texts = client.completions.create(
            model=model, prompt=["one", "two"], n=2, max_tokens=2, seed=1, logprobs=2, stop=["\0\0"]
        )
        assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
        logprobs = texts.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens is not None and len(logprobs.tokens) >= 1

        answer = client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_completion_tokens=6,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            extra_body=GREEDY,
        )
        choice = answer.choices[0]
        assert choice.message.role == "assistant"
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 6
        streamed = client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_completion_tokens=6,
            temperature=0,
            stream=True,
            extra_body=GREEDY,
        )
        contents = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
        assert "".join(contents) == choice.message.content

        # The client's own helper for streams puts the pieces together, and minds that the limit ended it.
        with (
            client.chat.completions.stream(
                model=model, messages=MESSAGES, max_completion_tokens=6, temperature=0, extra_body=GREEDY
            ) as stream,
            pytest.raises(openai.LengthFinishReasonError) as cut,
        ):
            stream.get_final_completion()
        assert cut.value.completion.choices[0].message.content == choice.message.content

        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="other", prompt="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.completions.create(model=model, prompt="a", best_of=3)
        assert wrong.value.param == "best_of"


async def check_async_client(url: str, model: str) -> None:
    """Several streams at once, and one that is left in the middle."""

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def contents(number: int) -> AsyncIterator[str]:
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"Number {number}"}],
                max_completion_tokens=8,
                temperature=0,
                stream=True,
                extra_body=GREEDY,
            )
            async for chunk in stream:
                yield chunk.choices[0].delta.content or ""

        async def text(number: int) -> str:
            return "".join([content async for content in contents(number)])

        together = await asyncio.gather(*(text(number) for number in range(6)))
        alone = [await text(number) for number in range(6)]
        assert list(together) == alone

        left = await client.completions.create(
            model=model, prompt=[1, 2, 3], max_tokens=200, stream=True, extra_body=GREEDY
        )
        await anext(aiter(left))
        await left.close()
