"""Candidates: a plan of shards, one small interface, several samplers behind it."""

from .candidates import CandidateConfig, generate_candidates
from .sampling import Request, Response, Sampler
from .transformers_sampler import TransformersSampler


__all__ = ["CandidateConfig", "Request", "Response", "Sampler", "TransformersSampler", "generate_candidates"]
