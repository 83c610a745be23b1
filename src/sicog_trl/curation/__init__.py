"""Curation: of the candidates of a row the one the others agree with, of the rows the most agreed on."""

from .curation import CurationConfig, curate, load_candidates


__all__ = ["CurationConfig", "curate", "load_candidates"]
