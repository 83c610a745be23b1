"""Texts without the places of the machine on which they were written."""

import os
import re
from urllib.parse import urlsplit

import pyarrow as pa

from ..images import URL


TOLD = ("error", "reason", "detail")  # columns in which this package writes what went wrong, and where
_QUOTED = re.compile(r"""(['"])(?:~(?=[/a-z])|/|file:/)(?:(?!\1).)*/""")
_PLAIN = re.compile(r"""(?<![\w:/.~<-])(?:~(?=[/a-z])|/|file:/)[^\s'"<>|;,]*/""")
_SERVER = re.compile(r"""https?://(?:localhost|\d+(?:\.\d+){3}|\[[0-9a-f:]+\])(?::\d+)?[^\s'"]*""")


def file_name(path: str | None) -> str | None:
    """Return the last part of a path or an address, which tells nothing of the machine."""
    if path is None:
        return None
    return os.path.basename(urlsplit(path).path if URL.match(path) else path)


def without_places(text: str) -> str:
    """Return a text with only the last part of absolute paths, and without servers that are named by their number."""
    return _PLAIN.sub("", _QUOTED.sub(r"\1", _SERVER.sub("a server", text)))


def tell_no_places(table: pa.Table) -> pa.Table:
    """Return rows whose errors and reasons do not say where files lie; images that a row has are known by path."""
    for name in TOLD:
        if name not in table.column_names or not pa.types.is_string(table.schema.field(name).type):
            continue
        texts = table[name].to_pylist()
        told = list(texts)
        for row, text in enumerate(texts):
            if text is not None and ("/" in text or "~" in text):
                told[row] = without_places(_without_own(text, table, row))
        if told != texts:
            field = table.schema.field(name)
            table = table.set_column(table.column_names.index(name), field, pa.array(told, field.type))
    return table


def _without_own(text: str, table: pa.Table, row: int) -> str:
    """A path with spaces has no end that could be found; that of an image of the row is known."""
    if "images" not in table.column_names:
        return text
    for image in table["images"][row] if table["images"][row].is_valid else ():
        path = image["path"].as_py() if image.is_valid else None
        if path and path.startswith(("/", "~")):
            text = text.replace(path, file_name(path))
    return text
