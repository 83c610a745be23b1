"""Whether columns have the types of the contract."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, Image, LargeList, List, Value

from .features import ANNOTATED_FEATURES, CANDIDATES_FEATURES, CURATED_FEATURES, DROPPED_FEATURES, PREFERENCE_FEATURES
from .messages import kind_of
from .rows import TEXTS


FEATURES = {
    **CANDIDATES_FEATURES,
    **CURATED_FEATURES,
    **ANNOTATED_FEATURES,
    **PREFERENCE_FEATURES,
    **DROPPED_FEATURES,
}


def column_fault(name: str, there: Any) -> str | None:
    """Return what is wrong with the type of a column, if anything is."""
    if name in TEXTS:
        if kind_of(there) is None:
            return (
                f"the column {name!r} holds {there}; a list of messages is needed: [{{'role': ..., 'content': ...}}]"
            )
    elif (wanted := Image() if name == "image" else FEATURES.get(name)) is not None and not _fits(there, wanted):
        return f"the column {name!r} holds {there}; {wanted} is needed"
    return None


def faults_together(dataset: Dataset, names: list[str]) -> Iterator[str]:
    """Yield what is wrong with the columns beside each other."""
    kinds = {kind_of(dataset.features[name]) for name in names if name in TEXTS} - {None}
    if len(kinds) > 1:
        yield "some columns of messages hold texts as content and others lists of parts; write all of them alike"
    if "id" not in names:
        yield "there is no column 'id', by which rows are followed"
    if "conversations" in dataset.column_names and not kinds:
        yield "LLaVA's conversations are read by no step; recipes/annotate.py makes training rows of them"
    elif set(names) <= {"id"} < set(dataset.column_names):
        yield f"no step reads any of the columns {dataset.column_names}: there are neither images nor texts"


def _fits(there: Any, wanted: Any) -> bool:
    """Whether a column can be read as one of the contract; of a mapping, fields may be missing, as in older files."""
    if isinstance(wanted, List):
        return isinstance(there, (List, LargeList)) and _fits(there.feature, wanted.feature)
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(name in wanted and _fits(there[name], wanted[name]) for name in there)
    if isinstance(wanted, Value):
        return isinstance(there, Value) and there.dtype.removeprefix("large_") == wanted.dtype
    return isinstance(there, type(wanted))
