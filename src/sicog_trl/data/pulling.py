"""Datasets of the Hub: what a name such as `me/digits@round-1` means, and its rows at that very commit."""

import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetBuilder, load_dataset_builder
from datasets import config as hf
from datasets.packaged_modules.cache.cache import Cache
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, HfApi, constants, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import REGEX_COMMIT_HASH

from ..files import is_local
from .rows import batches, image_columns, paths_of


_FILES = (".json", ".jsonl", ".parquet", ".tar")  # which some steps read instead of a folder


def pin(name: str) -> str:
    """
    Return the name of a Hub dataset with the commit that it stands for now: `me/digits@<commit>`.

    Whoever reads rows more than once, in several processes or in a run that is started again, reads the same ones by
    that name. Without a network, what the name stood for when it was last pulled here.

    Args:
        name (`str`):
            Hub id, with a branch, a tag or a commit behind an `@`, or without one for `main`. A folder or a file is
            returned as it is, whatever its name holds.

    Raises:
        `OSError`: if there is no such dataset for the reader, or nobody can be asked. `ValueError`: if it has no such
        revision.
    """
    if is_local(name) or Path(name).exists() or Path(name).suffix in _FILES:
        return name
    repo, at, revision = name.partition("@")
    if at and not revision:
        raise ValueError(f"{name}: there is no revision behind the @; name a branch, a tag or a commit")
    if REGEX_COMMIT_HASH.fullmatch(revision):
        return name
    try:
        return f"{repo}@{HfApi().resolve_revision(repo, repo_type='dataset', revision=revision or None).resolved}"
    except (HfHubHTTPError, HFValidationError, RevisionResolutionError) as error:
        raise _explained(error, repo, revision) from error


def _explained(error: Exception, repo: str, revision: str) -> Exception:
    """Return an error that says what to do for one of the Hub's clients."""
    name = f"{repo}@{revision}" if revision else repo
    if isinstance(error, RevisionNotFoundError):
        refs = HfApi().list_repo_refs(repo, repo_type="dataset")
        found = ", ".join(ref.name for ref in [*refs.branches, *refs.tags])
        return ValueError(f"{repo} has no revision {revision!r}; it has: {found}, and their commits")
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo} is gated: ask for access on its page, and log in with `hf auth login`")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
        return FileNotFoundError(
            f"{name} is no folder here, and the Hub has no such dataset for whoever asks: if it is private, log in "
            "with `hf auth login`, or put a token that may read it into HF_TOKEN"
        )
    if isinstance(error, HFValidationError):
        return FileNotFoundError(f"{name} is neither a folder here nor the id of a Hub dataset: {error}")
    if isinstance(error, HfHubHTTPError):
        return ConnectionError(f"the Hub does not give {name}: {error}")
    why = "HF_HUB_OFFLINE forbids to ask the Hub" if is_offline_mode() else "the Hub cannot be reached"
    return ConnectionError(
        f"{name} is not in the cache of this machine, or not all that is wanted of it, and {why}. Where it can be "
        f"asked, run `python -m sicog_trl.data {name} --no_decode_images` once"
    )


def pull(name: str, config: str | None, split: str) -> Dataset:
    """
    Load a split of a Hub dataset; what was pulled before is read without asking anybody.

    Args:
        name (`str`):
            Hub id, at a revision or not, see [`pin`].
        config (`str`, *optional*):
            Configuration; unless given the one that is named like the split, or else the default one.
        split (`str`):
            Name of the split.

    Raises:
        `ValueError`: if there is no such configuration or split, an image is a file of this machine, or the card names
        files elsewhere. Errors of [`pin`].
    """
    repo, _, commit = (pinned := pin(name)).partition("@")
    card = _configs(repo, commit)
    configs = card or MetadataConfigs()
    if "://" in str([each.get("data_files") for each in configs.values()]):
        raise ValueError(f"the card of {name} names data files at other addresses, and nothing is fetched from there")
    if config and configs and config not in configs:
        raise ValueError(f"{name} has no configuration {config!r}; it has: {', '.join(configs)}")
    config = config or (split if split in configs else configs.get_default_config_name())
    if len(configs) > 1 and not config:
        raise ValueError(
            f"{name} has several configurations, none of them named like the split {split!r}: give one as "
            f"dataset_config: {', '.join(configs)}"
        )
    builder = _builder(repo, commit, config, configs.get(config, {}), ask=card is not None)
    try:
        dataset = builder.as_dataset(split)
    except ValueError as error:
        others = f" The configurations are: {', '.join(configs)}." if len(configs) > 1 else ""
        raise ValueError(f"{name}, configuration {builder.config.name!r}: {error}{others}") from error
    _refuse_local_images(dataset, pinned)
    return dataset


def pulled_splits(name: str, config: str | None = None) -> list[str]:
    """Return the splits that the card of a Hub dataset names: of a configuration, or all that are named like one."""
    repo, _, commit = pin(name).partition("@")
    configs = _configs(repo, commit) or {}
    found = []
    for each in [config] if config else configs:
        files = configs.get(each, {}).get("data_files")
        splits = [entry["split"] for entry in files or [] if isinstance(entry, dict)]
        found += [split for split in splits if config or split == each]
    return found or ["train"]


def _configs(repo: str, commit: str) -> MetadataConfigs | None:
    """Return the configurations that the card names, `None` if there is no card and nobody to ask for it."""
    try:
        path = HfApi().hf_hub_download(repo, "README.md", repo_type="dataset", revision=commit)
    except LocalEntryNotFoundError:
        return None
    except EntryNotFoundError:
        return MetadataConfigs()
    except HfHubHTTPError as error:
        raise _explained(error, repo, commit) from error
    return MetadataConfigs.from_dataset_card_data(DatasetCard.load(path, ignore_metadata_errors=True).data)


def _builder(repo: str, commit: str, config: str | None, described: dict[str, Any], ask: bool) -> DatasetBuilder:
    """
    Return what reads a configuration at a commit, downloaded.

    `datasets` reads the newest rows that it has whenever the Hub cannot be reached, whatever the revision: what it has
    of this commit is looked up first, and anything else is refused.
    """
    place = {"repo_id": repo, "dataset_name": repo.rpartition("/")[2], "hash": commit}
    version = described.get("version", "0.0.0")
    cached = Cache(config_name=config or "default", version=version, **place)
    if Path(cached.cache_dir).is_dir():
        return cached
    try:
        builder = load_dataset_builder(repo, config, revision=commit) if ask else cached
        if not ask or builder.hash != commit:
            raise ConnectionError("not in the cache at this commit")
        builder.download_and_prepare()
    except (ConnectionError, LocalEntryNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and "find cache for" not in str(error):  # of another configuration
            raise
        raise _explained(RevisionResolutionError(), repo, commit) from error
    return builder


def _refuse_local_images(dataset: Dataset, name: str) -> None:
    """Refuse a Hub dataset that names files of this machine: they would be shown, and published with what is made."""
    columns = [name for name in dataset.column_names if name in ("images", *image_columns(dataset.features))]
    if not columns:
        return
    caches = [Path(each).resolve() for each in (hf.HF_CACHE_HOME, hf.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)]
    for _, raw in batches(dataset.select_columns(columns).with_format("arrow")):
        named = (path for column in raw.columns for chunk in column.chunks for path in paths_of(chunk))
        for path in filter(os.path.isfile, named):
            if not any(Path(path).resolve().is_relative_to(cache) for cache in caches):
                raise ValueError(f"{name} names {path!r} as an image: a file of this machine, not of the dataset")
