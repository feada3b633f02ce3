from __future__ import annotations

import gzip
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import RequestConfig, ServeConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.config.trace import TraceConfig
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.runs.checks import check_point
from prefixlab.bench.runs.point import outline
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.runs.trace import with_room, within_limits
from prefixlab.bench.targets.endpoint import open_endpoint
from prefixlab.bench.traces.fidelity import Recorded
from prefixlab.bench.workloads.prompts import make_prompts
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import ChatWording, IdWording, common_prefix
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.bench.fake_server import FakeServer

LINES = [
    (0, 40, 4, [0, 1, 2]),
    (100, 50, 4, [0, 1, 3, 4]),
    (200, 40, 4, [0, 1, 2]),
    (300, 20, 4, [9, 10]),
]
"""By hand at page size 16: nothing, 32 of 50, 32 of 40 (the last, partial block is no page), nothing."""
TRACES = Path(os.environ.get("PREFIXLAB_TRACES") or "../shared/traces")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "t.jsonl", LINES)


def write(path: Path, lines: list[tuple[int, int, int, list[int]]]) -> Path:
    fields = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("\n".join(json.dumps(dict(zip(fields, line, strict=True))) for line in lines))
    return path


def config_of(trace: Path, *, load: LoadConfig | None = None, **options: Any) -> ServeConfig:
    return ServeConfig(
        request=RequestConfig(ignore_eos=True),
        dataset=DatasetConfig(dataset_name="trace", dataset_path=str(trace)),
        load=load or LoadConfig(),
        trace=TraceConfig(**{"speedup": 10.0, "block_size": 16, **options}),
    )


def replay(
    server: FakeServer, config: ServeConfig, *, tokenizer: ByteTokenizer | None = None, **given: Any
) -> PointResult:
    target = TargetConfig(base_url=server.url, **given)
    with open_endpoint(target, server.url, lambda facts: tokenizer) as endpoint:
        config = within_limits(replace(config, target=target), endpoint)
        check_point(endpoint, config, tokenizer)
        return ServeRun(endpoint, config, tokenizer=tokenizer, cold=True).run()


@pytest.mark.parametrize("backend", ["sglang", "vllm", "openai"])
def test_a_trace_is_replayed_with_its_sharing_to_the_token(
    fake_server: FakeServer, trace: Path, backend: str
) -> None:
    fake_server.behaviour.is_vllm = backend == "vllm"
    result = replay(fake_server, config_of(trace), backend=backend)
    assert result.check.verdict is Verdict.CONSISTENT
    rows = {record.request_id: record for record in result.table.to_records()}
    assert [rows[str(i)].num_cached_tokens for i in range(4)] == [0, 32, 32, 0]
    assert [rows[str(i)].num_prompt_tokens for i in range(4)] == [40, 50, 40, 20]
    assert all(record.num_output_tokens == 4 for record in rows.values())
    assert any("cold start proven" in note for note in result.notes)
    assert result.fidelity is not None
    assert (result.fidelity.prompts.num_exact, result.fidelity.outputs.num_exact) == (4, 4)
    assert (result.fidelity.sharing.num_exact, result.fidelity.sharing.sent) == (4, 72 / 150)


def test_chat_with_a_tokenizer_is_as_exact_and_shares_its_template_besides(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    lines = [(100 * i, 230 + 40 * i, 4, [0, 1 + i]) for i in range(4)]
    result = replay(
        fake_server,
        config_of(write(tmp_path / "t.jsonl", lines), block_size=200),
        backend="openai-chat",
        tokenizer=ByteTokenizer(),
    )
    assert result.check.verdict is Verdict.CONSISTENT
    assert result.fidelity is not None
    assert (result.fidelity.prompts.num_exact, result.fidelity.sharing.num_exact) == (4, 4)
    assert "all share a chat template's" in str(result.fidelity)


def test_a_chat_template_that_blocks_have_no_room_for_takes_some_sharing_and_no_length(
    fake_server: FakeServer, tmp_path: Path
) -> None:
    # The template is 19 tokens of 200, 216, 232 …: more than the last piece of each; the second is a twin.
    lines = [
        (50 * i, 200 + 16 * max(0, i - 1), 4, [*range(12 + max(0, i - 1)), 90 + max(0, i - 1)])
        for i in range(6)
    ]
    result = replay(
        fake_server,
        config_of(write(tmp_path / "t.jsonl", lines), block_size=16),
        backend="openai-chat",
        tokenizer=ByteTokenizer(),
    )
    assert result.check.verdict is Verdict.CONSISTENT
    assert result.fidelity is not None
    assert result.fidelity.prompts.num_exact == 6
    sharing = result.fidelity.sharing
    assert sharing.num_exact < 6
    assert sharing.fitted - 0.2 < sharing.sent <= sharing.fitted


def test_a_prompt_shorter_than_the_chat_template_is_made_longer_and_that_is_said(
    fake_server: FakeServer, trace: Path
) -> None:
    result = replay(
        fake_server, config_of(trace, length_scale=0.5), backend="openai-chat", tokenizer=ByteTokenizer()
    )
    assert result.check.verdict is Verdict.CONSISTENT
    assert any("made longer, to hold the chat template" in note for note in result.notes)


def test_chat_without_one_is_sent_in_words_and_says_how_far_lengths_are_off(
    fake_server: FakeServer, trace: Path
) -> None:
    result = replay(fake_server, config_of(trace), backend="openai-chat")
    assert result.fidelity is not None
    assert result.fidelity.prompts.num_exact < 4
    assert result.fidelity.sharing.num_exact == 4
    assert "; sharing exact in words, in all 4 prompts, " in str(result.fidelity)
    assert any("prompts in words are not as long as asked" in note for note in result.notes)
    assert any("fidelity: prompts 0 of 4 exact, the furthest +" in note for note in result.notes)


def test_requests_go_at_their_times_divided_by_the_speedup(fake_server: FakeServer, trace: Path) -> None:
    result = replay(fake_server, config_of(trace, speedup=5.0))
    intended = sorted(result.table.intended_s.tolist())
    assert [time - intended[0] for time in intended] == pytest.approx([0.0, 0.02, 0.04, 0.06])
    assert result.fidelity is not None and result.fidelity.timing is not None
    assert result.fidelity.timing.recorded_s == pytest.approx(0.3)
    assert result.fidelity.timing.scheduled_s == pytest.approx(0.06)
    assert result.fidelity.timing.lag_p50_s >= 0


def test_scaling_and_cutting_are_noted(fake_server: FakeServer, trace: Path) -> None:
    result = replay(fake_server, config_of(trace, length_scale=0.5, max_len=24))
    assert result.settings.facts["block_size"] == 8
    assert any("scaled by 0.5" in note for note in result.notes)
    assert any("1 of 4 requests cut to 24 tokens" in note for note in result.notes)
    assert result.table.prompt_tokens.max() <= 24
    assert result.fidelity is not None
    assert result.fidelity.sharing.recorded == (32 + 40) / 150
    assert result.fidelity.sharing.fitted == (16 + 20) / (20 + 22 + 20 + 10)


def test_the_servers_own_limit_cuts_where_the_users_is_higher_or_none(
    fake_server: FakeServer, trace: Path
) -> None:
    fake_server.behaviour.info = {"max_model_len": 45}
    for options in ({}, {"max_len": 1000}):
        result = replay(fake_server, config_of(trace, **options))
        assert result.settings.facts["num_cut"] == 1
        assert any("1 of 4 requests cut to 45 tokens" in note for note in result.notes)


def test_a_cache_smaller_than_the_longest_request_cuts_too(fake_server: FakeServer, trace: Path) -> None:
    fake_server.behaviour.info = {"max_model_len": 1000, "max_total_num_tokens": 45}
    result = replay(fake_server, config_of(trace))
    assert any("1 of 4 requests cut to 45 tokens" in note for note in result.notes)


def test_a_server_that_cannot_be_emptied_gets_other_tokens_in_the_same_shape(
    fake_server: FakeServer, trace: Path
) -> None:
    fake_server.behaviour.flush = "missing"
    first, second = (replay(fake_server, config_of(trace)) for _ in range(2))
    assert first.check.verdict is second.check.verdict is Verdict.CONSISTENT
    for result in (first, second):
        assert result.fidelity is not None and result.fidelity.sharing.num_exact == 4


def test_less_than_the_ideal_is_named_with_what_takes_hits(fake_server: FakeServer, trace: Path) -> None:
    fake_server.behaviour.info = {"force_miss": False}
    fake_server.behaviour.force_miss = True
    result = replay(fake_server, config_of(trace))
    assert result.check.verdict is Verdict.LESS
    assert result.ledger is not None and result.ledger.word == "no hits"
    assert any(note.startswith("no hits: not one of") for note in result.notes)


def test_a_miss_that_is_meant_is_consistent(fake_server: FakeServer, trace: Path) -> None:
    fake_server.behaviour.force_miss = True
    assert replay(fake_server, config_of(trace)).check.verdict is Verdict.CONSISTENT


def test_failures_are_counted_and_named(fake_server: FakeServer, trace: Path) -> None:
    fake_server.fail_prompts_of(length=40, times=2)
    result = replay(fake_server, config_of(trace, speedup=2.0))
    assert (result.metrics.ok, result.metrics.failed, result.metrics.planned) == (2, 2, 4)
    assert any("2 of 4 requests failed, first: HTTP 503" in note for note in result.notes)
    assert result.fidelity is not None and result.fidelity.prompts.num_counted == 2


@pytest.mark.usefixtures("calibrated_to_almost_nothing")
def test_a_trace_past_the_clients_calibration_is_told(fake_server: FakeServer, trace: Path) -> None:
    notes = replay(fake_server, config_of(trace)).notes
    assert sum(note.startswith("past what this client was calibrated to, 0 tokens/s") for note in notes) == 1


def test_a_duration_ends_a_replay_at_that_time_of_the_schedule(trace: Path) -> None:
    planned = outline(config_of(trace, speedup=1.0, load=LoadConfig(duration=0.2)))
    assert planned.num_requests == 2
    assert planned.offsets_s is not None and planned.offsets_s.tolist() == [0.0, 0.1]


def test_a_list_of_lengths_has_no_times_to_be_sent_at(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n40,3\n50,4\n")
    with pytest.raises(ConfigError, match=r"lengths.csv has no times: give --no-fixed-schedule"):
        outline(config_of(path, block_size=None, speedup=1.0))
    in_order = outline(
        config_of(
            path, block_size=None, speedup=1.0, load=LoadConfig(fixed_schedule=False, max_concurrency=1)
        )
    )
    assert in_order.workload.prompt_tokens == [40, 50] and in_order.offsets_s is None
    assert any("they share nothing" in note for note in in_order.workload.notes)


def test_at_a_rate_a_file_is_sent_whole_unless_told_otherwise(tmp_path: Path) -> None:
    lines = write(tmp_path / "long.jsonl", LINES * 300)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n' * 1100)
    rate = LoadConfig(request_rate=50.0)
    replayed = config_of(lines, sort=True, speedup=1.0, load=rate)
    custom = ServeConfig(dataset=DatasetConfig(dataset_name="custom", dataset_path=str(prompts)), load=rate)
    for config, count in ((replayed, 1200), (custom, 1100)):
        planned = outline(config)
        assert planned.offsets_s is not None
        assert planned.num_requests == len(planned.offsets_s) == count
        few = outline(replace(config, dataset=replace(config.dataset, num_prompts=7)))
        assert few.num_requests == 7


def test_a_speed_is_refused_for_sessions_whose_users_are_not_known_to_have_thought(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    turn = {"timestamp": 0, "input_length": 20, "output_length": 4, "hash_ids": [1, 2], "session_id": "a"}
    path.write_text(f"{json.dumps(turn)}\n{json.dumps({**turn, 'timestamp': 9})}\n")
    dataset = DatasetConfig(dataset_name="sessions", dataset_path=str(path))
    config = ServeConfig(dataset=dataset, trace=TraceConfig(block_size=16, speedup=2.0))
    with pytest.raises(
        ConfigError, match=r"--speedup and --time-scale change recorded think times, of which t"
    ):
        outline(config)
    assert outline(replace(config, trace=TraceConfig(block_size=16))).num_requests == 2


def test_a_file_that_changed_is_read_again(trace: Path) -> None:
    assert outline(config_of(trace)).num_requests == 4
    write(trace, LINES[:3])
    assert outline(config_of(trace)).num_requests == 3


def test_each_speed_has_prompts_of_its_own(trace: Path) -> None:
    slow, fast = (config_of(trace, speedup=speed) for speed in (1.0, 2.0))
    assert slow.key() != fast.key()


def test_the_prompts_of_a_trace_share_the_blocks_it_says_and_not_one_token_more(tmp_path: Path) -> None:
    path = TRACES / "sharegpt300_qwen3_b16.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there: PREFIXLAB_TRACES names the folder of traces")
    with gzip.open(path) as file:
        rows = [json.loads(line) for line in itertools.islice(file, 120)]
    config = config_of(path, block_size=None, speedup=1.0)
    workload = outline(replace(config, dataset=replace(config.dataset, num_prompts=len(rows)))).workload
    assert workload.sketches is not None
    wording = IdWording(Vocabulary.of_size(4096, "test"))
    prompts = [prompt.token_ids for prompt in make_prompts(workload.sketches, wording, 1)]
    assert [len(prompt) for prompt in prompts] == [row["input_length"] for row in rows]
    for i, row in enumerate(rows):
        for j in range(i):
            pairs = zip(row["hash_ids"], rows[j]["hash_ids"], strict=False)
            blocks = next((k for k, (a, b) in enumerate(pairs) if a != b), None)
            if blocks is None:
                blocks = min(len(row["hash_ids"]), len(rows[j]["hash_ids"]))
            assert common_prefix(prompts[i], prompts[j]) == 16 * blocks


CHAT = ChatWording(ByteTokenizer())


@settings(deadline=None, max_examples=60)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(0, 20)),
        min_size=1,
        max_size=12,
    ),
    block_size=st.sampled_from([1, 4, 16, 40]),
)
def test_a_chat_template_finds_room_in_any_trace_and_adds_no_sharing_but_its_own(
    requests: list[tuple[list[int], int]], block_size: int
) -> None:
    rows = []
    for number, (choices, own) in enumerate(requests):
        chain = [sum(3**k * (1 + c) for k, c in enumerate(choices[: i + 1])) for i in range(len(choices))]
        pieces = [(key, block_size) for key in chain]
        rows.append([*pieces, (-1 - number, own)] if own else pieces)
    sketches = Sketches.of(rows, [1] * len(rows))
    recorded = Recorded.of(sketches)
    roomy = with_room(Workload(sketches=sketches, recorded=recorded), CHAT)
    assert roomy.sketches is not None
    prompts = [prompt.token_ids for prompt in make_prompts(roomy.sketches, CHAT, 1)]
    template = CHAT.num_head_tokens + CHAT.num_tail_tokens
    for prompt, wanted in zip(prompts, sketches.prompt_tokens.tolist(), strict=True):
        assert len(prompt) == wanted or wanted < template + 6 <= len(prompt) + 6
    for place, prompt in enumerate(prompts):
        shared = max((common_prefix(prompt, earlier) for earlier in prompts[:place]), default=0)
        most = max(int(sketches.shared_tokens[place]), CHAT.num_head_tokens if place else 0)
        assert shared <= most or len(prompt) > sketches.prompt_tokens[place]


def test_ids_need_no_room_and_other_workloads_are_left_alone(trace: Path) -> None:
    workload = outline(config_of(trace)).workload
    assert with_room(workload, IdWording(Vocabulary.of_size(64, "test"))) is workload
    assert with_room(replace(workload, recorded=None), CHAT).sketches is workload.sketches
