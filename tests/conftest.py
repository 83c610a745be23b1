"""What every test runs under. Set before anything imports torch or transformers, and inherited by subprocesses."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest


# No test may need the Hub; one that tries fails at once, on every machine alike.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests and the processes that they start share few cores: threads that wait for each other would cost more than they
# bring, and sums would depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The learner of the digits world with random weights; a folder."""
    from sicog_trl.digits.model import build_model

    folder = tmp_path_factory.mktemp("digits_model")
    build_model(folder)
    return folder


@pytest.fixture(scope="session")
def digits_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small digits world: the artefact folders that `recipes/digits/world.py` writes."""
    from sicog_trl.data import save
    from sicog_trl.digits import annotated_pool, evaluation_pool, preference_pool, unlabelled_pool

    folder = tmp_path_factory.mktemp("digits_world")
    pools = {
        "annotated": annotated_pool(6, seed=0),
        "preference": {"train": preference_pool(6, seed=0)},
        "unlabelled": {"train": unlabelled_pool(12, seed=0)},
        "development": evaluation_pool("development", 4, seed=0),
        "test": evaluation_pool("test", 4, seed=0),
    }
    for pool, splits in pools.items():
        for split, dataset in splits.items():
            save(dataset, folder / pool, split)
    return folder


@pytest.fixture(scope="session")
def world(digits_world: Path) -> str:
    """The unlabelled scenes of the small digits world; a folder."""
    return str(digits_world / "unlabelled")


@pytest.fixture(scope="module")
def sampler(digits_model: Path):
    """An embedded sampler with the learner of the digits world."""
    from generating import LENGTH

    from sicog_trl.generation import TransformersSampler

    return TransformersSampler(str(digits_model), batch_size=16, max_completion_length=LENGTH)


@pytest.fixture
def bf16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let YAMLs for a GPU be read where there is none: training arguments refuse bf16 there."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A stand-in for the Hub, and clients in this process that know no other."""
    from hub_server import TOKEN, HubServer

    with HubServer() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(autouse=True)
def damaged_images_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tasks of lmms-eval let Pillow read half an image, for the whole process; what comes after must not."""
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)
