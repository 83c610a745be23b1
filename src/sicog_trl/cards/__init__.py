"""
Cards: the `README.md` of a dataset or model repository, metadata in front.

`common.py` is for both: metadata of others stays, our part stands between marks, no token and no place of this machine
gets in. `model.py` writes the card of a model from what its folder records, with its lineage (`lineage.py`) and its
scores (`scores.py`).
"""

from .common import between, listed, merged, metadata_of, text_of, whole, with_part
from .model import model_card, validate_model_card
from .scores import show_scores


__all__ = [
    "between",
    "listed",
    "merged",
    "metadata_of",
    "model_card",
    "show_scores",
    "text_of",
    "validate_model_card",
    "whole",
    "with_part",
]
