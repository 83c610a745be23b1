"""Candidates: a plan of shards, one small interface, several samplers behind it."""

from .candidates import CandidateConfig
from .inputs import ImageRows
from .plan import Plan, make_plan
from .samplers import SamplerConfig, check_options, load_sampler
from .sampling import Failure, Request, Response, Sampler
from .sources import load_images
from .summary import conclude, summarize
from .transformers_sampler import TransformersSampler
from .worker import generate_candidates, make_shards


__all__ = [
    "CandidateConfig",
    "Failure",
    "ImageRows",
    "Plan",
    "Request",
    "Response",
    "Sampler",
    "SamplerConfig",
    "TransformersSampler",
    "check_options",
    "conclude",
    "generate_candidates",
    "load_images",
    "load_sampler",
    "make_plan",
    "make_shards",
    "summarize",
]
