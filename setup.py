"""Everything about the package that an installer needs; tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent


def read_version() -> str:
    """Reads the version from the package without importing it, since importing would need the dependencies."""
    text = (ROOT / "src" / "sicog_trl" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('src/sicog_trl/__init__.py must hold a line `__version__ = "..."`.')
    return match.group(1)


def read_readme() -> str:
    """Reads the README as the long description; a checkout without one still installs."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# The floor is the oldest release whose behaviour the code relies on, the ceiling the next release that may break it.
# `constraints.txt` names the one combination that the tests run on.
INSTALL_REQUIRES = [
    "accelerate>=1.13,<2",
    "datasets>=5,<6",
    "datasketch>=1.10,<2",  # MinHash of texts
    "filelock>=3.12,<5",
    "huggingface_hub>=2.4,<3",
    "imagehash>=4.3,<5",  # perceptual hashes of images
    "jinja2>=3.1,<4",
    "numpy>=2,<3",
    "peft>=0.20,<1",
    "pillow>=11,<14",
    "pyarrow>=24,<27",
    "pyyaml>=6,<7",
    "safetensors>=0.8,<1",
    "scikit-learn>=1.5,<2",  # ships the scans of handwritten digits behind `sicog_trl.digits`
    "torch>=2.9,<3",
    "transformers>=5.18,<6",
    "trl>=1.16,<2",
]

# For a machine where torchvision fits its torch, which is the usual one with a GPU.
EVAL = [
    "lmms-eval==0.7.3",
    "evaluate>=0.4,<1",  # its radar plot stands in the report
    "matplotlib>=3.10,<4",
    "Levenshtein>=0.27,<1",  # imported by lmms-eval's MathVista task, declared only in another extra
    "scipy>=1.13,<2",  # imported by its paired statistics
    'decord>=0.6,<1; platform_system == "Linux"',  # imported by its LLaVA and Qwen wrappers
    # Without a floor pip settles on 0.1.0, to please the newest latex2sympy2, and no `*_reasoning` task loads.
    "math-verify[antlr4_13_2]>=0.9,<1",
]

# For a machine without a torchvision that fits its torch: what lmms-eval imports when it is itself installed by
# `pip install --no-deps lmms-eval==0.7.3`. An extra cannot say "without dependencies", so `make install` does both.
EVAL_CPU = [
    "aiohttp>=3.10,<4",
    "evaluate>=0.4,<1",
    "Levenshtein>=0.27,<1",
    "loguru>=0.7,<1",
    "math-verify[antlr4_13_2]>=0.9,<1",
    "matplotlib>=3.10,<4",
    "nltk>=3.9,<4",
    "numexpr>=2.10,<3",
    "openai>=2,<4",
    "openpyxl>=3.1,<4",
    "pytablewriter>=1.2,<2",
    "python-dotenv>=1,<2",
    "sacrebleu>=2.5,<3",
    "scipy>=1.13,<2",
    "sentencepiece>=0.2,<1",
    "tenacity>=9,<10",
    "tiktoken>=0.9,<1",
    "zstandard>=0.23,<1",
]

EXTRAS = {
    "eval": EVAL,
    "eval-cpu": EVAL_CPU,
    "deepspeed": ["deepspeed>=0.19,<0.20"],
    # The one release whose requirements fit both this Transformers and this TRL. Give it an environment of its own,
    # without constraints.txt: it wants an older numpy than the one pinned there.
    "vllm": ["vllm==0.29.0"],
    "ray": ["ray[data]>=2.60,<3"],
    "openai": ["openai>=2,<4"],  # candidates from a server
    "qlora": ["bitsandbytes>=0.50,<1"],  # adapters on weights of 4 bits
    "similarity": ["sentence-transformers>=6,<7"],  # curation by a sentence encoder
    "quality": ["ruff>=0.17,<0.18"],  # a formatter's output changes between minor releases
    "test": ["pytest>=9,<10", "pytest-timeout>=2.4,<3", "pytest-xdist>=3.8,<4"],
}

setup(
    name="sicog-trl",
    version=read_version(),
    description="Recipes with which a vision-language model teaches itself, in the HuggingFace ecosystem.",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The sicog-trl contributors",
    license="Apache-2.0",
    keywords="vision-language models, self-improvement, self-consistency, SICOG, TRL, transformers",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"sicog_trl": ["templates/**/*", "evaluation/tasks/**/*", "**/*.yaml", "**/*.jinja"]},
    python_requires=">=3.11",  # the floor of Transformers and TRL
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"lmms_eval.models": ["sicog_trl = sicog_trl.evaluation:manifests"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
