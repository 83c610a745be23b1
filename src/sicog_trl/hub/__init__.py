"""
Publish the artefacts of a run as one dataset repository of the Hub, with a card that says what they are.

To read one back there is [`sicog_trl.data.load`] or plain `datasets.load_dataset(id, "curated", revision=...)`; where
it was pushed without its images, [`sicog_trl.hub.attach`] puts them back.
"""

from ..cards.dataset import validate_card
from ..cards.licences import LICENSES
from .config import PushConfig
from .push import overview, push


__all__ = ["LICENSES", "PushConfig", "overview", "push", "validate_card"]
