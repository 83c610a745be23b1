"""Push artefact folders as the configurations of one dataset repository: data and card in one commit, or nothing."""

from pathlib import Path
from typing import Any

from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..files import claim, write_json, write_text
from .card import validate_card, write_card
from .config import PushConfig, named_splits
from .counts import Counts
from .remote import Remote, compare
from .shards import write_shards


def push(config: PushConfig, output_dir: str | Path, api: HfApi | None = None) -> dict[str, Any]:
    """
    Push artefact folders to the Hub.

    What is pushed is first prepared in `output_dir`, itself a folder that `load_dataset` reads. Large files go up
    first and the commit is made when all are there, so a push that was cut off changed nothing; the next one sends
    only what the Hub does not have. Files that did not change are not sent again. The token is the one of
    `hf auth login` or of the environment; it is never read from a setting.

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
        `ValueError`: if the repository is public against the settings, its card names other licences, or the tag
        stands for something else. `PermissionError`: if the Hub does not accept the token.
    """
    api, output_dir = api or HfApi(), Path(output_dir)
    if not config.dry_run:
        _check_login(api)
    remote = Remote(api, config)
    shards, counts, folders, left_out = _prepare(config, output_dir)
    about = {**vars(config), "folders": folders}
    sizes = {name: sum(file.stat().st_size for file in files) for name, files in shards.items()}
    text = write_card(about, counts, sizes, remote.card)
    write_text(output_dir / "README.md", text)
    local = {f"data/{file.name}": file for files in shards.values() for file in files}
    local["README.md"] = output_dir / "README.md"
    plan = compare(local, remote.files, set(shards))
    validate_card(text, [path for path in {**remote.files, **local} if plan.get(path) != "deleted"])
    remote.check_tag(config.tag, plan)
    report = {
        "repository": config.hub_dataset_id,
        "before": remote.state,
        "commit": None,
        "tag": config.tag,
        "private": config.private if remote.private is None else remote.private,
        "rows": {name: one.num_rows for name, one in counts.items()},
        "left_out": left_out,
        "files": {p: {"bytes": local[p].stat().st_size if p in local else 0, "is": s} for p, s in plan.items()},
    }
    if not config.dry_run:
        report["commit"] = _commit(api, config, remote, local, plan)
        write_json(output_dir / "pushed.json", report)
    return report


def overview(report: dict[str, Any]) -> str:
    """Return what [`push`] did, or would do, for a person."""
    verb = "would push" if report["commit"] is None else "pushed"
    seen = "private" if report["private"] else "PUBLIC"
    lines = [f"{verb} to {report['repository']} ({seen}), tag {report['tag'] or 'none'}:"]
    lines += [f"  it was {report['before']}"]
    lines += [f"  {rows:>12,} rows in {name}" for name, rows in report["rows"].items()]
    lines += [f"  {0:>12} rows in {name}, left out" for name in report["left_out"]]
    lines += [f"  {file['bytes']:>12,} bytes {file['is']:<9} {path}" for path, file in report["files"].items()]
    return "\n".join(lines)


def _check_login(api: HfApi) -> None:
    advice = "log in with `hf auth login`, or put a token that may write into HF_TOKEN"
    try:
        api.whoami()
    except LocalTokenNotFoundError:
        raise PermissionError(f"the Hub needs to know who pushes; {advice}") from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError(f"the Hub does not accept the token; {advice}") from None
        raise


def _prepare(config: PushConfig, output_dir: Path) -> tuple[dict[str, list[Path]], dict[str, Counts], dict, list[str]]:
    """Write the files of every configuration that has rows; the others are named."""
    named = named_splits(config.artefacts, output_dir)
    claim(output_dir / "settings.json", {"hub_dataset_id": config.hub_dataset_id})
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


def _commit(api: HfApi, config: PushConfig, remote: Remote, local: dict[str, Path], plan: dict[str, str]) -> str:
    """Make the repository if it is not there, one commit with everything, and the tag; return the commit."""
    if remote.head is None:
        api.create_repo(config.hub_dataset_id, repo_type="dataset", private=config.private, exist_ok=True)
    operations: list = [CommitOperationAdd(p, local[p]) for p, is_ in plan.items() if is_ in ("new", "changed")]
    operations += [CommitOperationDelete(path) for path, is_ in plan.items() if is_ == "deleted"]
    commit = remote.head
    if operations:
        # `upload_folder` would make several commits of many files, and readers would see data without its card.
        commit = api.create_commit(
            config.hub_dataset_id,
            operations,
            commit_message=f"Push {config.tag or 'data and card'}",
            repo_type="dataset",
            parent_commit=remote.head,
        ).oid
    if config.tag and config.tag not in remote.tags:
        api.create_tag(config.hub_dataset_id, tag=config.tag, revision=commit, repo_type="dataset")
    return commit
