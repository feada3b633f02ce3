"""Who may ask what: the API key, the admin key, and what stays open.

Owns the comparison, which takes the same time whatever is wrong. Invariant: without keys everything is open;
with an admin key, nothing but it opens admin endpoints.
"""

from __future__ import annotations

import enum
import hmac

from prefixlab.core.errors import AuthenticationError
from prefixlab.server.config import ServerConfig


class Access(enum.Enum):
    OPEN = "open"
    """Health and metrics: whoever watches the server need not be able to use it."""
    API = "api"
    ADMIN = "admin"
    """What concerns others' requests: the admin key if there is one, else the API key."""


def check_access(config: ServerConfig, access: Access, authorization: str | None) -> None:
    """Raises AuthenticationError unless the Authorization header opens endpoints of this kind."""
    keys: list[str | None] = []
    if access is Access.API and config.api_key is not None:
        keys = [config.api_key, config.admin_api_key]
    elif access is Access.ADMIN:
        keys = [config.admin_api_key or config.api_key]
    wanted = [key.encode() for key in keys if key is not None]
    if not wanted:
        return
    scheme, _, given = (authorization or "").partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key) for key in wanted]
    if scheme.lower() != "bearer" or not any(matches):
        what = "admin key" if access is Access.ADMIN and config.admin_api_key is not None else "API key"
        raise AuthenticationError(f"the {what} is missing or wrong (send 'Authorization: Bearer …')")
