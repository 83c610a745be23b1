"""Training: TRL's trainers, and what they lack for vision-language models that are cut off and started again.

`data.py` checks what is trained on, `trainers.py` builds on TRL and runs, `collators.py` changes a batch;
`freezing.py` and `adapters.py` say which weights learn, `preview.py` shows an example before anything does, and
`resume.py` goes on.
"""

from .collators import ViewsConfig, show_views
from .data import data_fingerprint, training_data
from .freezing import FreezeConfig, freeze, parts, parts_table
from .resume import already_trained, settings_of
from .trainers import (
    BatchConfig,
    ResumableDPOTrainer,
    ResumableSFTTrainer,
    set_accumulation,
    train_and_save,
    trainer_inputs,
)


__all__ = [
    "BatchConfig",
    "FreezeConfig",
    "ResumableDPOTrainer",
    "ResumableSFTTrainer",
    "ViewsConfig",
    "already_trained",
    "data_fingerprint",
    "freeze",
    "parts",
    "parts_table",
    "set_accumulation",
    "settings_of",
    "show_views",
    "train_and_save",
    "trainer_inputs",
    "training_data",
]
