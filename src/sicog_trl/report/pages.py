"""Templates become pages: a self-contained HTML page and its Markdown twin, in which no text of a row is markup."""

import html
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..files import write_text
from .sections import MISSING


# What a model wrote may move the cursor of a terminal that shows the page's twin, or not be text at all.
_UNSEEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_UNSEEN |= dict.fromkeys([*range(0x7F, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
SIGN_MARKS = {"gain": "▲", "loss": "▼", "open": ""}


def write_pages(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """
    Render the two templates called `name` into a folder.

    Args:
        folder (`Path`):
            Gets `<name>.html` and `<name>.md`.
        name (`str`):
            Of the templates.
        content (`dict[str, Any]`):
            What they show.

    Returns:
        `Path`: path of the HTML page.
    """
    for file, environment in ((f"{name}.html", _html_environment()), (f"{name}.md", markdown_environment())):
        text = environment.get_template(f"{file}.jinja").render(content).replace("\r\n", "\n").translate(_UNSEEN)
        write_text(folder / file, re.sub(r"\n{3,}", "\n\n", text) if file.endswith(".md") else text)
    return folder / f"{name}.html"


def marked(shown: dict | None) -> str:
    """Return a paired difference with its interval, and a mark if the interval excludes zero."""
    return MISSING if shown is None else f"{shown['text']} {shown['interval']} {SIGN_MARKS[shown['sign']]}".strip()


def aligned_table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Return a Markdown table whose columns line up as plain text too; the first `left` are aligned to the left."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in [header, *rows]]
    widths = [max(3, *(len(cells[column]) for cells in lines)) for column in range(len(header))]

    def join(cells: list[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(join(cells) for cells in [lines[0], rule, *lines[1:]])


def markdown_text(value: Any) -> str:
    """Return `value` as inert Markdown: model text may hold markup, links or table borders, and shows as written."""
    if isinstance(value, Markup):
        return value
    text = html.escape(str(value), quote=False)
    text = re.sub(r"([\\`*\[\]|~#])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word it is no emphasis
    text = text.replace("://", ":\\/\\/").replace("www.", "www\\.")  # bare addresses become links too
    return re.sub(r"\s*\n\s*", "<br>", text.strip())


def fenced(text: str, language: str = "") -> Markup:
    """Return `text` as a Markdown code block whose fence is longer than any inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def _html_environment() -> Environment:
    return Environment(
        loader=PackageLoader("sicog_trl"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def markdown_environment() -> Environment:
    """Return the environment of Markdown templates."""
    # Every expression is escaped unless it is marked as Markdown of our own; a template cannot forget it.
    environment = Environment(
        loader=PackageLoader("sicog_trl"),
        autoescape=False,
        finalize=markdown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"fenced": fenced, "own": Markup}
    environment.globals["delta"] = marked
    return environment


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows of a table, in the order of the file."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key} · ")
        else:
            shown = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}", MISSING if value is None or shown == "" else shown))
    return rows


def read_json(path: Path, kind: type) -> Any:
    """Return the content of a file, or an empty `kind` where there is none."""
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the stage that writes it again") from error
    if not isinstance(content, kind):
        raise ValueError(
            f"{path} should hold a JSON {'object' if kind is dict else 'array'}, not {type(content).__name__}"
        )
    return content
