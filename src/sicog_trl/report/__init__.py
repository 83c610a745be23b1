"""The page that a person reads: one run folder becomes one self-contained HTML page and a Markdown twin."""

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..files import write_text
from .chain import chain_against_direct
from .gallery import gallery, stage_folder
from .line import arms, cost, health, label_accuracy, line
from .sections import CONTROL, MISSING, TREATED, behaviour, explanations, results
from .verdicts import verdict


# What a model wrote may move the cursor of a terminal that shows the page's twin, or not be text at all.
_UNSEEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_UNSEEN |= dict.fromkeys([*range(0x7F, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
SIGN_MARKS = {"gain": "▲", "loss": "▼", "open": ""}


def write_report(run_dir: str | Path) -> Path:
    """
    Write `report.html` and `report.md` into the folder of a run, from nothing but the files of that folder.

    Whatever a stage did not record is shown as a dash. The same files give the same bytes.

    Args:
        run_dir (`str` or `Path`):
            Folder that `recipes/self_improve.py` wrote: `config.yaml`, `manifest.json`, `stages.json`,
            `evaluate/scores.json` and the folders of the stages.

    Returns:
        `Path`: path of `report.html`.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir} is not a folder; give the output_dir of a run")
    return write_pages(run_dir, "report", read_run(run_dir))


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


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return everything that the two templates show."""
    scores = read_json(run_dir / "evaluate" / "scores.json", dict)
    stages = read_json(run_dir / "stages.json", list)
    config = run_dir / "config.yaml"
    return {
        "treated": TREATED,
        "control": CONTROL,
        "missing": MISSING,
        "verdict": verdict(scores, stages),
        "results": results(scores),
        "explanations": explanations(scores),
        "result_table": Markup(summary_table(scores)),
        "behaviour": behaviour(scores),
        "line": line(stages),
        "arms": arms(stages),
        "labels": label_accuracy(stages),
        "health": health(stages),
        "chain": chain_against_direct(scores, run_dir),
        "gallery": gallery(run_dir, stages),
        "cost": cost(stages),
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
        "manifest": flat(read_json(run_dir / "manifest.json", dict)),
        "evaluation": flat(scores.get("manifest") or {}),
        "stage_commands": "\n".join(_command(run_dir, stage) for stage in stages if stage.get("output_dir")),
    }


def summary_table(scores: dict) -> str:
    """
    Return the result table as aligned Markdown, which reads as plain text too.

    Args:
        scores (`dict`):
            Content of `evaluate/scores.json`.

    Returns:
        `str`: rows are tasks, columns the models and the paired differences with their 95 % intervals; ▲ and ▼ mark
        a difference for the better or the worse whose interval excludes zero.
    """
    table = results(scores)
    header = ["task", "metric", "n", *table["models"], *table["pairs"]]
    rows = []
    for row in table["rows"]:
        rows.append([row["task"], row["metric"], row["n"], *row["scores"], *map(_marked, row["differences"])])
    if not rows:
        return "No scores were recorded."
    return aligned_table(header, rows, left=2)


def _marked(shown: dict | None) -> str:
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
    environment.globals["delta"] = _marked
    return environment


def _command(run_dir: Path, stage: dict) -> str:
    """Return the recorded command of a stage, or where there is none the one that its recipe names."""
    folder = stage_folder(run_dir, stage)
    if folder and (recorded := read_json(folder / "stage.json", dict).get("command")):
        return str(recorded)
    config = shlex.quote(f"{stage['output_dir']}/config.yaml")
    return f"accelerate launch recipes/{shlex.quote(str(stage.get('recipe', MISSING)))} --config {config}"


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
