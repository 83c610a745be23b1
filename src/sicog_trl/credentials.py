"""What opens somebody's account: it is never written into a folder, a card or a log."""

import re
from typing import Any


TOKEN = re.compile(r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,})")
# `eos_token` and `max_new_tokens` open nothing.
_KEY = re.compile(r"(.*[_.])?(hub_token|hf_token|auth_token|access_token|api_key|password|secret)|(.*\.)?token", re.I)


def refuse_credentials(values: dict[str, Any], where: str) -> None:
    """
    Refuse settings that hold a token or a password, before they are written anywhere.

    Args:
        values (`dict[str, Any]`):
            Settings, nested or not.
        where (`str`):
            What they are the settings of, for the error.

    Raises:
        `ValueError`: naming the key, never the value.
    """
    if key := _found(values):
        raise ValueError(
            f"{where}: {key} would be written into the folder of the run; leave it out. The token of the Hub is that "
            "of `hf auth login` or HF_TOKEN, and keys of servers are read from the environment"
        )


def _found(value: Any, key: str = "") -> str | None:
    """Return where in nested settings the first token or password stands."""
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return next((found for name, inner in parts if (found := _found(inner, f"{key}.{name}".lstrip(".")))), None)
    named = _KEY.fullmatch(key) and value
    return key if isinstance(value, str) and (named or TOKEN.search(value)) else None
