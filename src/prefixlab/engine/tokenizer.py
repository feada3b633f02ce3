"""A model's own tokenizer: tokenizer.json and the chat template from a Hugging Face folder.

Owns the reading of those files and the rendering of templates, in jinja2's sandbox, since a template is code
somebody else wrote. No clock is offered to templates: a prompt that changes with the date shares no prefix
with yesterday's.

Invariant: implements `core.seams.Tokenizer`; whatever a client's text or messages can cause is an
InvalidRequestError.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer as FastTokenizer

from prefixlab.core.errors import EngineError, InvalidRequestError
from prefixlab.core.text.byte_tokenizer import message_text
from prefixlab.engine.model_config import eos_ids


class HFTokenizer:
    """The tokenizer of `folder`.

    Raises:
        EngineError: no tokenizer.json, or one of the files cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise EngineError(
                f"{folder} holds no tokenizer.json (--tokenizer names another; 'byte' needs none)"
            )
        try:
            self._tokenizer = FastTokenizer.from_file(str(path))
        except Exception as error:  # what the tokenizers library raises is a bare Exception
            raise EngineError(f"{path} cannot be read: {error}") from error
        settings = _read_json(folder / "tokenizer_config.json")
        self._special = {
            name: _text_of_token(value)
            for name, value in settings.items()
            if name.endswith("_token") and value
        }
        self._eos_token_ids = self._find_eos_ids(folder)
        self._template = _compile(folder, settings)

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Of generation_config.json, else config.json; and the tokenizer's own end-of-sequence token."""
        return self._eos_token_ids

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError("the text is not valid Unicode") from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> str:
        if self._template is None:
            raise InvalidRequestError("the model has no chat template: send a prompt instead of messages")
        # Templates expect text; a list of text parts is another spelling of it.
        flat = [
            m | {"content": message_text(m)} if isinstance(m.get("content"), list) else m for m in messages
        ]
        try:
            return self._template.render(messages=flat, add_generation_prompt=True, **self._special)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequestError(
                f"the chat template refuses the messages: {error}", "messages"
            ) from error

    def _find_eos_ids(self, folder: Path) -> frozenset[int]:
        for name in ("generation_config.json", "config.json"):
            found = eos_ids(_read_json(folder / name).get("eos_token_id"))
            if found:
                break
        own = self._tokenizer.token_to_id(self._special.get("eos_token", ""))
        return frozenset(found) | (frozenset() if own is None else {own})


def _compile(folder: Path, settings: dict[str, Any]) -> jinja2.Template | None:
    """The chat template: chat_template.jinja, else tokenizer_config.json's (its `default`, if a list)."""
    file = folder / "chat_template.jinja"
    source = file.read_text() if file.exists() else settings.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if source is None:
        return None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_from_template
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise EngineError(f"the chat template of {folder} cannot be read: {error}") from error


def _raise_from_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # jinja2's own escapes <, > and & for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, empty if there is no such file."""
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise EngineError(f"{path} is not a JSON object")
    return fields


def _text_of_token(value: Any) -> str:
    """A special token is spelt as text, or as an object with its text as `content`."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)
