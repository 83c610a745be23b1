"""What a sampler is asked and what it answers, and random numbers that belong to a candidate, not to a process."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Request:
    """
    Candidates wanted for one prompt.

    Args:
        images (`list[PIL.Image.Image]`):
            What the model looks at; may be empty.
        prompt (`str`):
            Text of the user turn, without image placeholders.
        seeds (`list[int]`):
            One seed per candidate, each one more than the one before.
        stored (`list[dict]`, *optional*):
            For each image what the dataset holds of it (`bytes` or `path`), if its pixels are the very ones that the
            model shall see, or else `None`; lets a sampler send a file as it is. Empty means none of them.
    """

    images: list[Image]
    prompt: str
    seeds: list[int]
    stored: list[dict[str, Any] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Response:
    """
    One candidate.

    Args:
        text (`str`):
            What the model wrote.
        finish_reason (`str`):
            Why it ended: `"stop"`, `"length"`, or what else a server calls it.
        num_tokens (`int`, *optional*):
            Length in tokens; `None` if a server does not tell.
        mean_logprob (`float`, *optional*):
            Mean log-probability, in nats, of its tokens (the end token among them) under the model's own
            distribution: temperature 1, the whole vocabulary. `None` unless it was asked for.
    """

    text: str
    finish_reason: str
    num_tokens: int | None
    mean_logprob: float | None = None


@dataclass(frozen=True)
class Failure:
    """
    A request that has no answer and will have none if it is asked again.

    Args:
        reason (`str`):
            One word that the row is dropped for, such as `"refused"`.
        message (`str`):
            What happened, for a person.
        responses (`list[Response]`, *optional*):
            Those of the first seeds, if some came before it happened.
    """

    reason: str
    message: str
    responses: list[Response] = field(default_factory=list)


class Sampler(Protocol):
    """
    Anything that answers requests.

    What concerns one request alone (an image that the processor refuses, a prompt that is too long) is a [`Failure`]
    of that request; what concerns all of them (a server that is gone, a full memory) is an exception: the shard is
    not published, and a later run makes it.

    Attributes:
        placeholders (`tuple[str, ...]`):
            Texts that the model takes for an image; a question that holds one is not asked.
    """

    placeholders: tuple[str, ...]

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Response] | Failure]]:
        """
        Yield, in any order, the number of each request with one response per seed, or with why it has none.

        Requests hold open images: take them as they are needed, and keep none that is answered.
        """
        ...


def open_pixels(requests: Iterable[Request]) -> int:
    """Return the number of pixels that requests hold open; an image that several of them share counts once."""
    return sum({id(image): image.width * image.height for one in requests for image in one.images}.values())


def candidate_seed(run_seed: int, row_id: str, prompt: str, index: int) -> int:
    """
    Return the seed of candidate `index` of a row: `hash(run_seed, row_id, prompt) + index`, below 2³¹.

    It depends on nothing else: candidate 3 is the same whether 4 or 9 are asked for.
    """
    digest = hashlib.blake2b("\0".join([str(run_seed), row_id, prompt]).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + index) % 2**31


def uniform(seeds: np.ndarray, step: int) -> np.ndarray:
    """
    Return one number in [0, 1) per seed for a step of decoding: SplitMix64 as a counter-based generator.

    A generator object per row would be slow and a shared one would make a row's text depend on its batch.

    Args:
        seeds (`np.ndarray` of shape `(batch_size,)`, `uint64`):
            Seed of each sequence.
        step (`int`):
            Number of tokens generated so far.
    """
    with np.errstate(over="ignore"):
        x = seeds * np.uint64(0x9E3779B97F4A7C15) + np.uint64(step + 1) * np.uint64(0xD1B54A32D192ED03)
        for _ in range(2):  # twice: neighbouring seeds and steps must not show
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / 2**53


class OwnDistribution(LogitsProcessor):
    """
    Normalise what the model says before anything changes it; stands first, and changes nothing itself.

    Attributes:
        mass (`torch.FloatTensor` of shape `(batch_size,)`):
            Logarithm of the sum of the exponentials of the last scores.
    """

    mass: torch.FloatTensor

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.mass = scores.logsumexp(dim=-1)
        return scores


class SeededSampling(LogitsProcessor):
    """
    Draw the next token of each sequence from its own stream, by inverting the cumulative distribution.

    Everything but the drawn token gets `-inf`, so that `generate(do_sample=True)` can only take it. The nucleus is
    sought among the few most likely tokens, which takes a tenth of the time of sorting the vocabulary; only the rows
    whose nucleus is larger are sorted. Its tokens are drawn from in the order of the vocabulary: there the rounding of
    another batch moves a boundary a little, while in the order of likelihood it would exchange whole tokens.

    Args:
        seeds (`Sequence[int]`):
            Seed of each sequence of the batch.
        prompt_length (`int`):
            Number of tokens of the padded prompt.
        temperature (`float`):
            Above 0; 0 means greedy.
        top_p (`float`):
            The most likely tokens with at least this probability in total are kept, and all that are as likely as the
            last of them.
        own ([`OwnDistribution`], *optional*):
            Makes it keep the log-probability of each drawn token under the model's own distribution.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        prompt_length: int,
        temperature: float,
        top_p: float,
        own: OwnDistribution | None = None,
    ):
        self.seeds = np.asarray(seeds, dtype=np.uint64)
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.top_p = top_p
        self.own = own
        self.logprobs: list[torch.Tensor] = []  # one per step

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        token = scores.argmax(dim=-1, keepdim=True) if self.temperature == 0 else self._draw(input_ids, scores)
        if self.own:  # what was suppressed in between was not drawn
            self.logprobs.append(scores.gather(-1, token).squeeze(-1) - self.own.mass)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)

    def _draw(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.LongTensor:
        device = "cpu" if scores.device.type == "mps" else scores.device  # Apple's has no double precision
        scaled = scores.to(device).float() / self.temperature
        values, tokens = scaled.topk(min(_FEW, scaled.shape[-1]))
        scaled -= values[:, :1].clone()
        values -= values[:, :1].clone()
        draw = torch.from_numpy(uniform(self.seeds, input_ids.shape[1] - self.prompt_length)).to(device)[:, None]
        if self.top_p >= 1:
            return _invert(scaled.double().exp(), draw).to(scores.device)
        mass = scaled.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
        token, found = self._from_nucleus(values, tokens, mass, draw)
        if not found.all():
            rest = ~found
            ordered = torch.sort(scaled[rest], dim=-1, descending=True, stable=True)
            token[rest], _ = self._from_nucleus(*ordered, mass[rest], draw[rest])
        return token.to(scores.device)

    def _from_nucleus(
        self, values: torch.Tensor, tokens: torch.LongTensor, mass: torch.Tensor, draw: torch.Tensor
    ) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """Draw from the nucleus if it ends among `values`, which descend, and say whether it does."""
        probabilities = values.double().exp() / mass
        last = (probabilities.cumsum(dim=-1) < self.top_p).sum(dim=-1, keepdim=True).clamp(max=values.shape[-1] - 1)
        threshold = values.gather(-1, last)
        tokens, order = tokens.sort(dim=-1)
        kept = probabilities.where(values >= threshold, 0.0).gather(-1, order)
        return tokens.gather(-1, _invert(kept, draw)), (threshold > values[:, -1:]).squeeze(-1)


_FEW = 64  # ours: holds the nucleus of nearly every step of a trained model


def _invert(weights: torch.Tensor, draw: torch.Tensor) -> torch.LongTensor:
    """Return the first index of each row whose cumulative weight exceeds the share `draw` of the whole."""
    cumulative = weights.cumsum(dim=-1)
    index = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)
    return index.clamp(max=weights.shape[-1] - 1)
