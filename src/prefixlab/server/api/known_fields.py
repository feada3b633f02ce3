"""The one table of request fields that the OpenAI, vLLM and SGLang APIs have and this server does not honour.

Such a field is accepted at a neutral value (null, and whatever asks for exactly what this server does anyway)
and refused by name at any other; so a client that spells out its defaults works, and none is ignored in
silence. A field that is in no API is refused as unknown. `openapi.py` writes the table into the schema.

Invariant: no field stands both here and in the body type of the same scope.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from prefixlab.core.errors import InvalidRequestError

# Where a field stands: a body, or an object inside one (then the field that holds it names the scope).
GENERATE, SAMPLING = "generate", "sampling_params"
COMPLETIONS, CHAT, STREAM_OPTIONS, MESSAGE = "completions", "chat", "stream_options", "messages"
ABORT = "abort_request"

_BOTH = (COMPLETIONS, CHAT)
_ANY_BODY = (GENERATE, COMPLETIONS, CHAT)


class _Anything:
    """Neutral at every value: a label that asks the server for nothing."""


ANYTHING = _Anything()

Neutral = tuple[Any, ...] | _Anything

# scopes, neutral values besides null, names
_ROWS: tuple[tuple[tuple[str, ...], Neutral, str], ...] = (
    # Labels.
    (_BOTH, ANYTHING, "user safety_identifier prompt_cache_key"),
    ((CHAT,), ANYTHING, "metadata"),
    # OpenAI.
    (_BOTH, ({},), "logit_bias"),
    ((COMPLETIONS,), (1,), "best_of"),
    ((COMPLETIONS,), ("",), "suffix"),
    ((CHAT,), (), "audio function_call moderation prediction prompt_cache_retention web_search_options"),
    ((CHAT,), ([],), "functions tools"),
    ((CHAT,), ("none", "auto"), "tool_choice"),
    ((CHAT,), (True, False), "parallel_tool_calls"),
    ((CHAT,), (["text"],), "modalities"),
    ((CHAT,), ("none",), "reasoning_effort"),
    ((CHAT,), ("medium",), "verbosity"),
    ((CHAT,), (False,), "store"),
    (_BOTH, ("auto", "default"), "service_tier"),
    (_BOTH, ({"type": "text"},), "response_format"),
    ((STREAM_OPTIONS,), (False,), "include_obfuscation"),
    ((MESSAGE,), (), "audio function_call reasoning reasoning_content refusal tool_call_id"),
    ((MESSAGE,), ([],), "annotations tool_calls"),
    # vLLM.
    (_BOTH, (False,), "use_beam_search include_stop_str_in_output add_special_tokens"),
    ((CHAT,), (False,), "return_token_ids"),
    (_BOTH, (1.0,), "length_penalty"),
    (_BOTH, (True,), "spaces_between_special_tokens"),
    (_BOTH, ([],), "bad_words logits_processors"),
    (
        _BOTH,
        (),
        "allowed_token_ids prompt_logprobs prompt_embeds truncate_prompt_tokens truncation_side request_id "
        "kv_transfer_params structured_outputs guided_json guided_regex guided_choice guided_grammar "
        "guided_decoding_backend guided_whitespace_pattern structural_tag vllm_xargs logprob_token_ids "
        "repetition_detection",
    ),
    ((CHAT,), (False,), "echo continue_final_message"),
    ((CHAT,), (True,), "add_generation_prompt"),
    ((CHAT,), (True, False), "include_reasoning"),
    (
        (CHAT,),
        (),
        "documents chat_template mm_processor_kwargs media_io_kwargs thinking_token_budget",
    ),
    ((CHAT,), ({},), "chat_template_kwargs"),
    # SGLang.
    (_BOTH, (), "json_schema regex ebnf stop_regex"),
    (_BOTH, (False,), "no_stop_trim return_cached_tokens_details return_meta_info return_prompt_token_ids"),
    ((CHAT,), (True, False), "separate_reasoning stream_reasoning"),
    ((COMPLETIONS,), (), "template"),
    (
        _ANY_BODY,
        (),
        "lora_path session_params session_id custom_logit_processor bootstrap_host bootstrap_port "
        "bootstrap_room bootstrap_pair_key data_parallel_rank routed_dp_rank disagg_prefill_dp_rank "
        "routing_key conversation_id max_dynamic_patch min_dynamic_patch custom_labels",
    ),
    (_BOTH, (), "custom_params"),
    (_ANY_BODY, (False,), "return_hidden_states return_routed_experts"),
    (
        (GENERATE,),
        (),
        "input_embeds image_data video_data audio_data modalities lora_id token_ids_logprob "
        "external_trace_header",
    ),
    ((GENERATE,), (True, False), "log_metrics no_logs"),
    (
        (GENERATE,),
        (False,),
        "require_reasoning background return_bytes return_entropy return_prompt_token_ids",
    ),
    ((GENERATE,), (0,), "routed_experts_start_len"),
    ((ABORT,), (), "abort_message finished_reason"),
    ((SAMPLING,), (), "regex json_schema ebnf structural_tag stop_regex custom_params stream_interval"),
    ((SAMPLING,), ({},), "logit_bias"),
    ((SAMPLING,), (True,), "spaces_between_special_tokens"),
    ((SAMPLING,), (False,), "no_stop_trim"),
)


def _table() -> dict[str, dict[str, Neutral]]:
    table: dict[str, dict[str, Neutral]] = {}
    for scopes, neutral, names in _ROWS:
        for scope in scopes:
            for name in names.split():
                assert name not in table.setdefault(scope, {}), f"{scope}.{name} stands twice in the table"
                table[scope][name] = neutral
    return table


KNOWN_FIELDS: Mapping[str, Mapping[str, Neutral]] = _table()
"""Scope → field → its neutral values besides null."""


def is_neutral(value: Any, neutral: Neutral) -> bool:
    """Whether `value` asks for nothing this server does not do."""
    if value is None or isinstance(neutral, _Anything):
        return True
    # 1 == True, but a client that says true where a number belongs means something else.
    return any(isinstance(value, bool) == isinstance(item, bool) and value == item for item in neutral)


def honoured(given: Mapping[str, Any], scope: str, fields: Iterable[str], path: str = "") -> dict[str, Any]:
    """The part of an object that its type in this server holds.

    Args:
        given: the object as the client sent it.
        scope: which part of the table applies.
        fields: names the type has.
        path: how the client spells the place of the object, with a trailing dot if inside another.

    Raises:
        InvalidRequestError: a field is unknown, or known and not at a neutral value; it is named.
    """
    known = KNOWN_FIELDS.get(scope, {})
    names = frozenset(fields)
    kept = {}
    for name, value in given.items():
        if name in names:
            kept[name] = value
        elif name not in known:
            near = difflib.get_close_matches(name, names | known.keys(), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidRequestError(f"unknown field {path + name!r}{hint}", path + name)
        elif not is_neutral(value, known[name]):
            raise InvalidRequestError(
                f"{path + name!r} is not supported here{_allowed(known[name])}", path + name
            )
    return kept


def _allowed(neutral: Neutral) -> str:
    assert not isinstance(neutral, _Anything)
    values = ", ".join(["null", *(msgspec.json.encode(item).decode() for item in neutral)])
    return f"; it may be left out, or be {values}"
