"""Which sampler answers: one dataclass names it, one function makes it."""

from dataclasses import dataclass, field
from typing import Any

from ..checkpoints import check_model
from ..files import absolute
from .candidates import CandidateConfig
from .sampling import Sampler
from .transformers_sampler import TransformersSampler


SAMPLERS = ("transformers", "openai", "vllm")
IMAGE_TRANSPORTS = ("data", "file")


@dataclass
class SamplerConfig:
    """
    What samples, and how fast; none of it decides the text of a candidate on one CPU build in float32.

    Args:
        sampler (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"` in this process, `"openai"` for any OpenAI-compatible server (vLLM, SGLang), `"vllm"` in
            this process.
        batch_size (`int`, *optional*, defaults to `256`):
            Candidates per forward pass of `"transformers"`, prompts handed over at once to `"vllm"`.
        base_url (`str`, *optional*):
            Address of the server, such as `http://localhost:8000/v1`. Its key is read from `OPENAI_API_KEY`.
        served_model_name (`str`, *optional*):
            Name of the model at the server, if it is not `model_name_or_path`.
        concurrency (`int`, *optional*, defaults to `64`):
            Requests that the server is sent at once: about twice what it takes into one batch.
        image_transport (`str`, *optional*, defaults to `"data"`):
            `"data"` puts images into the request, `"file"` names files that the server can read.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds to wait for an answer before asking again.
    """

    sampler: str = field(default="transformers", metadata={"help": "What samples.", "choices": SAMPLERS})
    batch_size: int = field(default=256, metadata={"help": "Candidates per forward pass."})
    base_url: str | None = field(default=None, metadata={"help": "Address of the server."})
    served_model_name: str | None = field(default=None, metadata={"help": "Name of the model at the server."})
    concurrency: int = field(default=64, metadata={"help": "Requests that the server is sent at once."})
    image_transport: str = field(
        default="data", metadata={"help": "How images reach the server.", "choices": IMAGE_TRANSPORTS}
    )
    timeout: float = field(default=600.0, metadata={"help": "Seconds to wait for an answer."})

    def __post_init__(self) -> None:
        for name, choices in (("sampler", SAMPLERS), ("image_transport", IMAGE_TRANSPORTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: unknown {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.sampler == "openai" and not self.base_url:
            raise ValueError("base_url is missing: `sampler: openai` needs the address of a server")
        if self.sampler != "openai" and (self.base_url or self.served_model_name):
            raise ValueError(f"base_url and served_model_name belong to `sampler: openai`, not {self.sampler!r}")


# What of the options that TRL offers is used here.
_USED = {"model_name_or_path", "model_revision", "dtype", "dataset_name", "dataset_config", "dataset_train_split"}


def check_options(config: SamplerConfig, *options: Any) -> None:
    """
    Refuse what would be ignored in silence, and a model or dataset that is not there.

    Args:
        config ([`SamplerConfig`]):
            Which sampler is to use them.
        *options (`ModelConfig`, `ScriptArguments`):
            TRL's.
    """
    given = {name: value for part in options for name, value in vars(part).items()}
    usual = {name: value for part in options for name, value in vars(type(part)()).items()}
    used = _USED | ({"attn_implementation"} if config.sampler == "transformers" else set())
    for name, value in given.items():
        if name not in used and value != usual[name]:
            raise ValueError(f"{name} is {value!r}, but `sampler: {config.sampler}` does not use it; leave it out")
    model = given["model_name_or_path"]
    if config.sampler != "openai" or not model:
        check_model(model and absolute(model))
    if not given["dataset_name"]:
        raise ValueError("dataset_name is missing: name the folder or the Hub id of the images")


def load_sampler(
    config: SamplerConfig,
    candidates: CandidateConfig,
    model_name_or_path: str,
    revision: str | None = None,
    dtype: str | None = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
) -> Sampler:
    """
    Make the sampler that `config` names.

    Args:
        config ([`SamplerConfig`]):
            Which one.
        candidates ([`CandidateConfig`]):
            Says how to sample.
        model_name_or_path (`str`):
            The model; for a server the name that it is served under, unless `served_model_name` gives another.
        revision (`str`, *optional*):
            Revision of a Hub model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights in this process.
        device (`str`, *optional*):
            Device in this process; a GPU if there is one.
        attn_implementation (`str`, *optional*):
            How `"transformers"` computes attention.
    """
    names = ("max_completion_length", "temperature", "top_p", "logprobs")
    sampling = {name: getattr(candidates, name) for name in names}
    if config.sampler == "openai":
        from .openai_sampler import OpenAISampler

        return OpenAISampler(
            config.served_model_name or model_name_or_path,
            config.base_url,
            concurrency=config.concurrency,
            image_transport=config.image_transport,
            timeout=config.timeout,
            **sampling,
        )
    if config.sampler == "vllm":
        from .vllm_sampler import VLLMSampler

        return VLLMSampler(model_name_or_path, revision, dtype, chunk_size=config.batch_size, **sampling)
    sampling["attn_implementation"] = attn_implementation
    return TransformersSampler(model_name_or_path, revision, dtype, device, config.batch_size, **sampling)
