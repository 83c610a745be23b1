"""What a dataset card tells of the rows that are pushed and of the runs that made them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..report import aligned_table, flat, read_json
from .common import listed
from .counts import MOST_OF_A_PROMPT, Counts, cut, wording
from .lineage import last_part
from .places import without_places


# Of the settings of a run: places on the machine, checks of its input, examples, and prompts, which have a section.
_UNTOLD = re.compile(
    r"(^|_)((base_url|api_key|cache|output_dir|source|digest|path|password|secret|prompt)s?|token|nearest|rows_per_shard"
    r"|instruction)$"
)
# Of the summary of a run.
_TOLD = (
    *("dataset_name", "rejected_dataset_name", "images_dataset_name", "sampler", "rows", "rows_in", "kept"),
    *("paired", "pairs", "dropped", "failed_by_reason", "candidate_faults"),
    *("score_needed", "mean_consistency", "mean_margin", "truncated_share", "empty_share"),
    *("label_accuracy_before", "label_accuracy_after", "contaminated"),
)
_MOST_REASONS = 30
_MEANINGS = {
    "curated": "what the model says consistently, one answer per row, ready for `SFTTrainer`",
    "multi_turn": "the chosen chains as conversations, one step per turn, ready for `SFTTrainer`",
    "annotated": "rows whose answers were there before, ready for `SFTTrainer`",
    "preference": "a chosen and a rejected answer to one prompt, ready for `DPOTrainer`; `chosen_from` says whose",
    "dropped": "what was not kept, and in `reason` why; not for training",
    "candidates": "all that the model answered, before any choice; `question` and `answer` came with the images",
    "images": "the images, with their questions where there are any",
}
_TRAINED_ON = ("curated", "multi_turn", "annotated", "preference")


def content(about: dict[str, Any], counts: dict[str, Counts]) -> dict[str, Any]:
    """Return what the template shows; see [`~sicog_trl.cards.dataset.write_card`]."""
    first = next(iter(counts))
    reasons = {name: _most(one.columns["reason"] or one.columns["error"]) for name, one in counts.items()}
    rows = [[name, ", ".join(one.features), f"{one.num_rows:,}"] for name, one in counts.items()]
    folders: dict[str, list[str]] = {}
    for name, folder in about["folders"].items():
        folders.setdefault(folder, []).append(name)
    for number, folder in enumerate(about["made_by"] or [], 1):
        folders.setdefault(folder, []).append(f"step {number} before")
    modes = sorted({mode for one in counts.values() for mode in one.prompts})
    trained_on = [name for name in counts if name in _TRAINED_ON]
    untold = sum(one.without_token_count for one in counts.values())
    return {
        **about,
        "default": first,
        "rows_table": Markup(aligned_table(["configuration and split", "columns", "rows"], _plain(rows), left=2)),
        "meanings": [(name, _MEANINGS[name]) for name in counts if name in _MEANINGS],
        "several": len(counts) > 1,
        "selected": any(one.bins for one in counts.values()),
        "trained_on": trained_on,
        "attach": _attach(about, first),
        "train": f"dataset_name: {_pinned(about)}\ndataset_train_split: {trained_on[0]}" if trained_on else "",
        "load": _load(about, first, streaming=False) + _load(about, first, streaming=True),
        "null_images": {name: one.null_images for name, one in counts.items() if one.null_images},
        "prompts": [(mode, wording(mode), _others(mode, counts)) for mode in modes],
        "teachers": [(" and ".join(names), said) for folder, names in folders.items() if (said := _taught(folder))],
        "told": [(" and ".join(names), made) for folder, names in folders.items() if (made := told(folder))],
        "compared_with": sorted({name for folder in folders for name in _benchmarks(folder)}),
        "reasons": {name: found for name, found in reasons.items() if found},
        "histograms": [(name, _bars(one.histogram())) for name, one in counts.items() if one.histogram()],
        "lengths": Markup(_lengths(counts)),
        "untold_tokens": f"{untold:,}" if untold else "",
        "samples": counts[first].sample_texts(),
        "own_citation": about["citation"] or _citation(about),
    }


def _taught(folder: str) -> str:
    """Return the words that asked a teacher for what is in a folder, if one was asked."""
    said = read_json(Path(folder, "settings.json"), dict).get("teacher_prompt")
    return cut(said, MOST_OF_A_PROMPT) if isinstance(said, str) else ""


def _benchmarks(folder: str) -> list[str]:
    """Return the benchmarks with which a run of `decontaminate` compared the rows of a folder."""
    return list(read_json(Path(folder, "summary.json"), dict).get("benchmarks") or [])


def _load(about: dict[str, Any], name: str, streaming: bool) -> str:
    revision = f', revision="{about["tag"]}"' if about["tag"] else ""
    more = ", streaming=True" if streaming else ""
    return f'rows = load_dataset("{about["hub_dataset_id"]}", "{name}", split="{name}"{revision}{more})\n'


def _pinned(about: dict[str, Any]) -> str:
    return f"{about['hub_dataset_id']}@{about['tag']}" if about["tag"] else about["hub_dataset_id"]


def _attach(about: dict[str, Any], name: str) -> str:
    parts = (f"--dataset_name {_pinned(about)} --dataset_split {name}", "--images_dataset_name your/images")
    return " \\\n  ".join(["accelerate launch recipes/attach.py", *parts, "--output_dir runs/attached"])


def _citation(about: dict[str, Any]) -> str:
    """Return an entry for the dataset itself, for who has none of their own."""
    owner, name = about["hub_dataset_id"].split("/")
    title = re.sub(r"[{}\\]", "", about["pretty_name"] or name)
    note = f"{about['hub_dataset_id']} on the Hugging Face Hub" + (f", {about['tag']}" if about["tag"] else "")
    key = re.sub(r"\W", "_", f"{owner}_{name}")
    return f"@misc{{{key},\n  title = {{{title}}},\n  author = {{{{{owner}}}}},\n  note = {{{note}}}\n}}"


def _most(reasons: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return reasons by how often they were given, those beyond the first few together."""
    found = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(rows for _, rows in found[_MOST_REASONS:])
    shown = found[:_MOST_REASONS] + ([("others", rest)] if rest else [])
    return [(reason, f"{rows:,}") for reason, rows in shown]


def _plain(rows: list[list[str]]) -> list[list[str]]:
    return [[re.sub(r"[^\w ,.%|/-]", "", cell) for cell in row] for row in rows]


def _others(mode: str, counts: dict[str, Counts]) -> list[tuple[str, str]]:
    """Return the prompts of a mode that are not in the words of this package; an empty one stands for many more."""
    found: dict[str, int] = {}
    for one in counts.values():
        for prompt, used in one.prompts.get(mode, {}).items():
            if prompt != wording(mode):
                found[prompt] = found.get(prompt, 0) + used
    return [(prompt, f"{used:,}") for prompt, used in sorted(found.items(), key=lambda item: (not item[0], item[0]))]


def _bars(histogram: list[tuple[str, int]]) -> list[tuple[str, str, str]]:
    most = max(rows for _, rows in histogram) or 1
    return [(name, f"{rows:,}", "█" * round(30 * rows / most)) for name, rows in histogram]


def _lengths(counts: dict[str, Counts]) -> str:
    rows = [[name, what, *values] for name, one in counts.items() for what, values in one.lengths()]
    header = ["configuration", "length in", "texts", "mean", "median", "95th percentile", "most"]
    return aligned_table(header, rows, left=2) if rows else ""


def told(folder: str | Path) -> list[tuple[str, str]]:
    """
    Return the settings that an artefact folder records, as rows of a table, without what belongs to one machine.

    From `plan.json` and `summary.json` come model, precision, seed and sampler of candidates, from `settings.json` the
    similarity and the thresholds of curation. Of absolute paths and of datasets in folders the last part is told, and
    of settings that were left alone nothing.
    """
    summary = read_json(Path(folder, "summary.json"), dict)
    found = {**read_json(Path(folder, "plan.json"), dict), **read_json(Path(folder, "settings.json"), dict)}
    found |= {key: summary[key] for key in _TOLD if key in summary}
    return flat(cut(_public(found)))


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        told_of = {
            str(key): _datasets(inner) if str(key).endswith("dataset_name") else _public(inner)
            for key, inner in value.items()
            if not _UNTOLD.search(str(key))
        }
        return {key: inner for key, inner in told_of.items() if inner not in (None, {}, [])}
    if isinstance(value, list):
        if value and all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value):
            return _public(dict(value))  # such as how many candidates of each mode
        return [_public(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return without_places(value) if isinstance(value, str) else value


def _datasets(names: Any) -> list[str]:
    return [without_places(last_part(str(name))) for name in listed(names or [])]
