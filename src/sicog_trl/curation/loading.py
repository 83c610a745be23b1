"""Candidates of one or several artefacts as one dataset, in which every row is named once."""

import pyarrow.compute as pc
from datasets import Dataset, Features, concatenate_datasets

from ..data import CANDIDATES_FEATURES, load, repeated_id


def load_candidates(names: list[str], config: str | None = None, split: str = "candidates") -> Dataset:
    """
    Load the candidates of several artefacts as one dataset.

    Args:
        names (`list[str]`):
            Folders or Hub ids, at a revision or not, such as those of a perception and of a reasoning model.
        config (`str`, *optional*):
            Configuration of Hub datasets.
        split (`str`, *optional*, defaults to `"candidates"`):
            Name of the split.

    Raises:
        `ValueError`: if two of them, or one of them twice, have a row of the same id.
    """
    if not names:
        raise ValueError("dataset_name is empty: name at least one folder or Hub id of candidates")
    parts = []
    for name in names:
        part = load(name, config, split)
        _check_columns(part, name)
        parts.append(part.select_columns(list(CANDIDATES_FEATURES)))
    if repeated := repeated_id(parts):
        row_id, places = repeated
        raise ValueError(
            f"the id {row_id!r} stands in {names[places[0]]} and in {names[places[1]]}; ids must be unique over all "
            "candidates"
        )
    return parts[0] if len(parts) == 1 else concatenate_datasets([_with_all_fields(part) for part in parts])


def _with_all_fields(part: Dataset) -> Dataset:
    """Give candidates of older files the fields that they lack, as nulls; columns that lack none are not copied."""
    lacking = [name for name, feature in CANDIDATES_FEATURES.items() if part.features[name] != feature]
    if not lacking:
        return part
    whole = part.select_columns(lacking).cast(Features({name: CANDIDATES_FEATURES[name] for name in lacking}))
    return concatenate_datasets([part.remove_columns(lacking), whole], axis=1).select_columns(
        list(CANDIDATES_FEATURES)
    )


def _check_columns(candidates: Dataset, name: str) -> None:
    if missing := [column for column in CANDIDATES_FEATURES if column not in candidates.column_names]:
        raise ValueError(f"{name}: there is no column {missing[0]!r}, only {candidates.column_names}")
    if len(candidates) and (ids := candidates.select_columns("id").with_format("arrow")[:]["id"]).null_count:
        raise ValueError(f"{name}: row {pc.index(pc.is_null(ids), True)} has no id; give every row one")


def check(candidates: Dataset) -> None:
    """Refuse candidates that lack a column, or that name a row twice."""
    _check_columns(candidates, "the candidates")
    if not len(candidates):
        raise ValueError("the candidates have no rows; there is nothing to curate")
    if repeated := repeated_id([candidates]):
        row_id, places = repeated
        raise ValueError(f"the id {row_id!r} stands in {len(places)} rows of the candidates; ids must be unique")
