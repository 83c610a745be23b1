"""What was run: code, versions, hardware, weights. Every artefact of a run names them."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError


PACKAGES = (
    "sicog-trl torch transformers trl datasets accelerate peft lmms-eval sentence-transformers bitsandbytes".split()
)
WEIGHTS = ("*model*.safetensors", "*model*.bin")


def weights_fingerprint(model_name_or_path: str, revision: str | None = None) -> str:
    """
    Identify the weights behind a name: a hash of the files of a local model, the id and commit of a Hub model.

    Where neither the Hub nor the cache tells the commit, the revision stands in its place.

    Args:
        model_name_or_path (`str`):
            Folder of a model or adapter, or Hub id.
        revision (`str`, *optional*):
            Revision of a Hub model.
    """
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        return f"{model_name_or_path}@{_hub_commit(model_name_or_path, revision) or revision or 'main'}"
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights ({' or '.join(WEIGHTS)})")
    return f"sha256:{hash_files(files)}"


def _hub_commit(name: str, revision: str | None) -> str | None:
    for file in ("config.json", "adapter_config.json"):
        try:
            return Path(hf_hub_download(name, file, revision=revision)).parent.name  # snapshots/<commit>/<file>
        except EntryNotFoundError:  # it lacks this file, or nobody can be asked and it is not in the cache
            continue
        except (OSError, ValueError):  # no such model, no access, no name that the Hub could have
            return None
    return None


def hash_files(files: list[Path]) -> str:
    """Return a short hash of the contents of `files`, in their order."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the installed version of each package that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return the processor, the number of cores this process may use, and the GPUs."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "processor": _processor(), "cores": cores, "gpus": gpus}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def commit() -> dict[str, Any]:
    """Return the commit of the code and whether files differ from it; both `None` outside a git checkout."""
    folder = Path(__file__).parent
    try:
        head, changes = (
            subprocess.run(["git", *command.split()], cwd=folder, capture_output=True, text=True, check=True)
            for command in ("rev-parse HEAD", "status --porcelain --untracked-files=no")
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head.stdout.strip(), "dirty": bool(changes.stdout.strip())}


def made_by() -> dict[str, Any]:
    """Return what a result should name: `commit`, `dirty`, `versions` and `hardware`."""
    return {**commit(), "versions": versions(), "hardware": hardware()}
