"""Curation: of the candidates of a row the one the others agree with, of the rows the most agreed on.

`curation.py` goes through it all. Candidates are read by `loading.py` and `columns.py`; `similarity.py` scores them,
with vectors from `embedding.py` and the veto from `decisive.py`; `selection.py` chooses candidates and rows;
`writing.py` and `multi_turn.py` write what was chosen; `labels.py` measures how true it is.
"""

from .curation import CurationConfig, curate
from .loading import load_candidates


__all__ = ["CurationConfig", "curate", "load_candidates"]
