"""Push artefact folders as the configurations of one dataset repository: data and card in one commit, or nothing."""

import hashlib
from pathlib import Path
from typing import Any

from datasets.utils.py_utils import convert_file_size_to_int
from filelock import FileLock, Timeout
from huggingface_hub import HfApi

from ..cards.counts import Counts
from ..cards.dataset import refuse_others, validate_card, write_card
from ..cards.lineage import pushed_to
from ..data import splits
from ..files import refuse_another_run, write_json, write_text
from ..report import read_json
from .config import PushConfig, named_splits
from .remote import Remote, check_login, compare, explained, names_of
from .shards import write_shards


def push(config: PushConfig, output_dir: str | Path, api: HfApi | None = None) -> dict[str, Any]:
    """
    Push artefact folders to the Hub.

    What is pushed is first prepared in `output_dir`, itself a folder that `load_dataset` reads. Large files go up
    first and the commit is made when all are there, so a push that was cut off changed nothing. The next one sends
    only what the Hub does not have: whole files where they go up by Git LFS, chunks of them where they go up by Xet,
    as they do to the Hub itself unless `HF_HUB_DISABLE_XET=1` is set; of the group of files that was under way when a
    push was killed, Xet may ask for some again. Files that did not change are not sent at all. The token is the one
    of `hf auth login` or of the environment; it is never read from a setting.

    Args:
        config ([`PushConfig`]):
            What to publish, and as what.
        output_dir (`str` or `Path`):
            Gets the files that are pushed, and `pushed.json`.
        api (`huggingface_hub.HfApi`, *optional*):
            How the Hub is reached.

    Returns:
        `dict[str, Any]`: `repository`, `before` (its state), `commit` (`None` in a dry run), `tag`, `private`, `rows`
        per configuration, `left_out`, the configurations without rows, and `files`: size by path and whether each is
        new, changed, unchanged or deleted.

    Raises:
        `ValueError`: if the repository is public against the settings or has another name now, its card names other
        licences, rows of somebody else would be replaced, or the tag stands for something else. `PermissionError`: if
        the Hub does not accept the token, or not for this. `ConnectionError`: if it cannot be reached. `RuntimeError`:
        if somebody else pushed meanwhile, or pushes from `output_dir` just now.
    """
    api, output_dir = api or HfApi(), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output_dir / ".lock", timeout=0), explained(config.hub_dataset_id):
            return _push(config, output_dir, api)
    except Timeout:
        raise RuntimeError(f"{output_dir}: another push prepares its files here; wait for it") from None


def _push(config: PushConfig, output_dir: Path, api: HfApi) -> dict[str, Any]:
    if not config.dry_run:
        check_login(api)
    remote = Remote(api, config)
    shards, counts, folders, left_out = _prepare(config, output_dir)
    refuse_others(remote.card, [*shards, *left_out], remote.files)
    about = {**vars(config), "folders": folders, "left_out": left_out}
    text = write_card(about, counts, {name: _whole(files) for name, files in shards.items()}, remote.card)
    write_text(output_dir / "README.md", text)
    local = {f"data/{file.name}": file for files in shards.values() for file in files}
    local["README.md"] = output_dir / "README.md"
    plan = compare(local, remote.files, {*shards, *left_out})
    validate_card(text, [path for path in {**remote.files, **local} if plan.get(path) != "deleted"])
    rows = {name: one.num_rows for name, one in counts.items()}
    message = f"Push {config.tag or 'data and card'}"
    return remote.push(local, plan, output_dir, message, rows=rows, left_out=left_out)


def _whole(files: list[Path]) -> tuple[int, str]:
    """Return the size of some files and a hash of all of them."""
    digest = hashlib.sha256("".join(names_of(file)[0] for file in files).encode())
    return sum(file.stat().st_size for file in files), digest.hexdigest()


def overview(report: dict[str, Any]) -> str:
    """Return what [`push`] did, or would do, for a person."""
    changes = any(file["is"] != "unchanged" for file in report["files"].values())
    verb = "would push to" if report["commit"] is None else "pushed to" if changes else "nothing new for"
    seen = "private" if report["private"] else "PUBLIC"
    lines = [f"{verb} {report['repository']} ({seen}), tag {report['tag'] or 'none'}:"]
    lines += [f"  it was {report['before']}"]
    lines += [f"  {rows:>12,} rows in {name}" for name, rows in report["rows"].items()]
    lines += [f"  {0:>12} rows in {name}, left out" for name in report["left_out"]]
    lines += [f"  {file['bytes']:>12,} bytes {file['is']:<9} {path}" for path, file in report["files"].items()]
    return "\n".join(lines)


def _prepare(config: PushConfig, output_dir: Path) -> tuple[dict[str, list[Path]], dict[str, Counts], dict, list[str]]:
    """Write the files of every configuration that has rows; the others are named."""
    named = named_splits(config.artefacts, output_dir)
    _claim(output_dir, config.hub_dataset_id)
    size = convert_file_size_to_int(config.max_shard_size)
    reference = config.image_reference if config.images == "reference" else None
    shards, counts, left_out = {}, {}, []
    for name, (folder, split) in named.items():
        files, one = write_shards(folder, split, name, output_dir, size, reference)
        if files:
            shards[name], counts[name] = files, one
        else:
            left_out.append(name)
    if not shards:
        raise ValueError("none of the artefacts has a row; there is nothing to push")
    return shards, counts, {name: named[name][0] for name in shards}, left_out


def _claim(output_dir: Path, repository: str) -> None:
    """
    Refuse a folder that another step wrote, whose files would be replaced, or that was pushed as something else.

    What was only tried may be tried as something else.
    """
    path = output_dir / "settings.json"
    found = read_json(path, dict)
    if found.keys() != {"hub_dataset_id"}:
        if found or splits(output_dir):
            raise ValueError(f"{output_dir} holds the artefact of another step; prepare the push elsewhere")
    elif pushed_to(output_dir):
        refuse_another_run(output_dir, found, {"hub_dataset_id": repository})
    write_json(path, {"hub_dataset_id": repository})
