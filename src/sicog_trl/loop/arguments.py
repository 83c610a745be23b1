"""The arguments of a stage: what its section says, what the loop fills in, and what `$names` stand for."""

from pathlib import Path
from string import Template
from typing import Any

import yaml

from ..credentials import refuse_credentials


def arguments_of(section: dict, **filled: Any) -> dict:
    """Return the arguments of a section: its own, then what the loop fills in, then the YAML it starts from."""
    section = dict(section)
    path = Path(section.pop("config", ""))
    if path.name and not path.exists():
        raise FileNotFoundError(f"config: {path} does not exist; paths are relative to the working directory")
    start = yaml.safe_load(path.read_text()) if path.name else {}
    if not isinstance(start, dict):
        raise ValueError(f"config: {path} holds no arguments, but {start!r:.80}")
    refuse_credentials(start, str(path))
    return {**start, **filled, **section}


def resolve(value: Any, known: dict[str, Any]) -> Any:
    """Return a value with `$name` replaced by what is known under the name; one that is not known is an error."""
    if isinstance(value, dict):
        return {key: resolve(part, known) for key, part in value.items()}
    if isinstance(value, list):
        return [resolve(part, known) for part in value]
    if isinstance(value, str) and "$" in value:
        if value[1:] in known:
            return known[value[1:]]  # keeps the type of a seed
        try:
            return Template(value).substitute(known)
        except KeyError as error:
            raise ValueError(f"{value!r}: there is no ${error.args[0]} here; known are {sorted(known)}") from error
        except ValueError as error:
            raise ValueError(f"{value!r}: a $ that names nothing is written $$") from error
    return value
