"""Preferences: of two responses to one prompt the better one, and one that the model itself wrote.

`rows.py` brings together what a pair is made of, `margins.py` says which side may be rejected, `pairs.py` writes them.
"""

from .pairs import DROPPED_PAIRS_FEATURES, PairConfig, make_pairs
from .rows import load_scores


__all__ = ["DROPPED_PAIRS_FEATURES", "PairConfig", "load_scores", "make_pairs"]
