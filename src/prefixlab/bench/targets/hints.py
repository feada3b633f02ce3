"""What a user can do about an error of the server. Pure.

Owns the advice, which names options of the command line. The error itself stands before it, unchanged: advice
may be wrong, a server's words are not ours to replace.

Invariant: an HTTP status is read from where the decoder and `control.py` put it, never from a body.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_STATUS = re.compile(r"HTTP (\d{3})\b")
_FOREIGN_TOKEN = re.compile(r"token.*vocabulary", re.IGNORECASE | re.DOTALL)
_TEXT_ONLY = re.compile(r"prompt\b.{0,80}\bstring\b|\bstring.{0,80}\bprompt\b", re.IGNORECASE | re.DOTALL)


def blames_token_ids(error: str) -> bool:
    """Whether a server says of a prompt that it does not know a token of it, or takes text alone."""
    return bool(_FOREIGN_TOKEN.search(error) or _TEXT_ONLY.search(error))


def with_hint(error: str, url: str = "") -> str:
    """`error` of the server at `url`, if known, and what to try; `error` alone if nothing comes to mind."""
    advice = _advice(error, url)
    return f"{error} ({advice})" if advice else error


def _advice(error: str, url: str) -> str | None:
    found = _STATUS.match(error)
    status = int(found[1]) if found else None
    if status in (401, 403):
        return "give --api-key, or --admin-api-key where the server has another for its admin API"
    if status == 404:
        if urlsplit(url).path.rstrip("/").endswith("/v1"):
            return "leave out /v1 of --base-url, or choose another --backend"
        return "is --base-url right? else choose another --backend"
    if _FOREIGN_TOKEN.search(error):
        return "give --vocab-size or --tokenizer, for prompts of token ids the model knows"
    if _TEXT_ONLY.search(error):
        return "give --prompt-form text, if it takes no token ids"
    return None
