"""Where a model's files are: a folder as it is, a hub id after a download into the hub's cache.

Owns no file and reads none. `HF_HUB_OFFLINE`, `HF_HOME` and `HF_TOKEN` mean what the hub's library says.

Invariant: what is returned is a folder that exists.
"""

from __future__ import annotations

import re
from pathlib import Path

from prefixlab.core.errors import EngineError

_SETTINGS = ("*.json", "*.jinja")
_WEIGHTS = ("*.safetensors",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(model: str, revision: str | None = None, *, with_weights: bool) -> Path:
    """The folder of `model`, a path or a hub id.

    Args:
        revision: branch, tag or commit of a hub id.
        with_weights: also fetch the safetensors files.

    Raises:
        EngineError: no such folder, or the hub (or its cache, when offline) does not give it.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise EngineError(f"--revision {revision}: {model} is a folder, and has no revisions")
        return path
    if not _HUB_ID.fullmatch(model):
        raise EngineError(f"no folder {model}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_SETTINGS, *(_WEIGHTS if with_weights else ())]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise EngineError(
            f"no folder {model}, and no hub model of that name in the local cache; the hub cannot be reached "
            "(or HF_HUB_OFFLINE is set)"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise EngineError(f"no folder {model}, and the hub does not give it: {error}") from error
