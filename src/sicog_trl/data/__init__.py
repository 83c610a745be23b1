"""The column contract: what each artefact of the line holds, how it is written and read, and whether rows keep it.

An artefact is a Hub dataset or a folder with `data/<split>-00000-of-00001.parquet`, which `datasets.load_dataset`
reads alike. Rows are followed by `id`, never by position. `python -m sicog_trl.data <dataset>` checks one.
"""

from .artefacts import load, num_rows, save, split_file, split_files, splits, write_card, writing
from .features import (
    ANNOTATED_FEATURES,
    CANDIDATE,
    CANDIDATES_FEATURES,
    CURATED_FEATURES,
    DROPPED_FEATURES,
    HASHES,
    IMAGES,
    IMAGES_FEATURES,
    MESSAGES,
    PREFERENCE_FEATURES,
    REFERENCES,
    TRAINING_COLUMNS,
)
from .ids import refuse_repeated_ids, repeated_id, repeated_rows
from .mixture import MixtureConfig, load_mixture
from .pulling import pin
from .rows import batches, label_of, texts_of
from .validation import Validation, validate


__all__ = [
    "ANNOTATED_FEATURES",
    "CANDIDATE",
    "CANDIDATES_FEATURES",
    "CURATED_FEATURES",
    "DROPPED_FEATURES",
    "HASHES",
    "IMAGES",
    "IMAGES_FEATURES",
    "MESSAGES",
    "PREFERENCE_FEATURES",
    "REFERENCES",
    "TRAINING_COLUMNS",
    "MixtureConfig",
    "Validation",
    "batches",
    "label_of",
    "load",
    "load_mixture",
    "num_rows",
    "pin",
    "refuse_repeated_ids",
    "repeated_id",
    "repeated_rows",
    "save",
    "split_file",
    "split_files",
    "splits",
    "texts_of",
    "validate",
    "write_card",
    "writing",
]
