"""The embedded world: scenes of real handwritten digits, small enough to learn on a laptop.

A scene is a 32×32 RGB image of 2×2 cells; one to four cells hold one of the 1,797 real 8×8 scans of handwritten
digits that scikit-learn ships, in one of five colours on a dark or a light background. The *scans* are split, not the
scenes, so the handwriting of the development and test pools is never seen in training. `recipes/digits/world.py`
writes the pools and the model that starts in them.
"""

from .pools import annotated_pool, evaluation_pool, preference_pool, unlabelled_pool
from .scenes import (
    BACKGROUNDS,
    CELL,
    CELLS,
    COLOURS,
    DIGITS,
    NUMBERS,
    SCANS,
    Scene,
    make_scene,
    make_scenes,
    split_scans,
)
from .texts import (
    Question,
    ask_colour,
    ask_digit,
    ask_existence,
    ask_largest,
    ask_sum,
    chain_of_description,
    detailed_description,
    list_objects,
    object_accuracy,
    read_objects,
    salient_content,
    short_caption,
)


__all__ = [
    "BACKGROUNDS",
    "CELL",
    "CELLS",
    "COLOURS",
    "DIGITS",
    "NUMBERS",
    "SCANS",
    "Question",
    "Scene",
    "annotated_pool",
    "ask_colour",
    "ask_digit",
    "ask_existence",
    "ask_largest",
    "ask_sum",
    "chain_of_description",
    "detailed_description",
    "evaluation_pool",
    "list_objects",
    "make_scene",
    "make_scenes",
    "object_accuracy",
    "preference_pool",
    "read_objects",
    "salient_content",
    "short_caption",
    "split_scans",
    "unlabelled_pool",
]
