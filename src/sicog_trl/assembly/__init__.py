"""Assembly: a vision-language model from a vision tower, a language model and a projector.

`parts.py` loads the parts as others saved them, `templates.py` makes the chat template fit for images, and `build.py`
joins them.
"""

from .build import AssemblyConfig, assemble


__all__ = ["AssemblyConfig", "assemble"]
