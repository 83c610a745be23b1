"""The loop: the whole line from one YAML, stage by stage.

`config.py` says what a run is, `stages.py` lists its stages, `run.py` starts one process each and goes on with them.
"""

from .config import LoopConfig
from .run import StageError, run
from .stages import Stage, stages


__all__ = ["LoopConfig", "Stage", "StageError", "run", "stages"]
