"""
Cards: the `README.md` of a dataset or model repository, metadata in front.

`common.py` is for both: metadata of others stays, our part stands between marks, no token gets in, and by
`places.py` no place of this machine. `dataset.py` writes the card of what is pushed (`dataset_content.py`) from what
was counted on the way (`counts.py`); `model.py` that of a model from what its folder records (`model_content.py`),
with its lineage (`lineage.py`) and its scores (`scores.py`).
"""

from .common import between, listed, merged, metadata_of, text_of, whole, with_part
from .dataset import validate_card, write_card
from .licences import LICENSES
from .model import model_card, validate_model_card
from .scores import show_scores


__all__ = [
    "LICENSES",
    "between",
    "listed",
    "merged",
    "metadata_of",
    "model_card",
    "show_scores",
    "text_of",
    "validate_card",
    "validate_model_card",
    "whole",
    "with_part",
    "write_card",
]
