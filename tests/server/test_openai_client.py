"""The official `openai` client works unchanged, against a server in this process."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.server.harness import MODEL, Served, serving
from tests.server.openai_client import check_async_client, check_sync_client


def test_the_sync_client_works_unchanged(served: Served) -> None:
    check_sync_client(served.url, MODEL)
    served.wait_until_idle()


def test_the_async_client_works_unchanged(served: Served) -> None:
    asyncio.run(check_async_client(served.url, MODEL))
    served.wait_until_idle()


def test_the_client_sees_our_keys_and_our_overload_as_it_knows_them() -> None:
    settings = {"max_running_requests": 1, "max_queued_requests": 0}
    with serving(api_key="right", scheduler=settings) as served:
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="right", max_retries=0) as client,
            pytest.raises(openai.InternalServerError) as full,
        ):
            client.completions.create(model=MODEL, prompt="a")
        assert full.value.status_code == 503
        assert full.value.code == "queue_full"
