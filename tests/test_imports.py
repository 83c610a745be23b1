"""The core imports nothing that a bare machine lacks, and nothing that is slow to load for no reason."""

import json
import pkgutil
import subprocess
import sys

import sicog_trl


NOT_IMPORTED = (
    "torchvision",
    "vllm",
    "ray",
    "openai",
    "deepspeed",
    "lmms_eval",
    "sentence_transformers",
    "matplotlib",
    "evaluate",
)
LIGHT = ("prompts", "responses", "views")

MODULES_AFTER_IMPORT = """
import importlib, json, sys
modules = json.loads(sys.argv[1])
loaded = {}
for module in modules:
    importlib.import_module(module)
    loaded[module] = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps(loaded))
"""


def loaded_by(modules: list[str], names: tuple[str, ...]) -> dict[str, list[str]]:
    command = [sys.executable, "-c", MODULES_AFTER_IMPORT, json.dumps(modules), json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_module_imports_what_is_optional():
    modules = [module.name for module in pkgutil.walk_packages(sicog_trl.__path__, "sicog_trl.")]
    assert {"sicog_trl.data", "sicog_trl.generation.candidates", "sicog_trl.curation"} <= set(modules)
    # Those that speak to lmms-eval and to Ray; others import them when they are asked for.
    asked_for = {f"sicog_trl.evaluation.{name}" for name in ("answering", "harness", "server", "wrapper")}
    modules = [name for name in modules if name not in asked_for | {"sicog_trl.generation.ray_scheduler"}]
    assert not any(loaded_by(modules, NOT_IMPORTED).values())


def test_text_modules_import_no_framework():
    modules = [f"sicog_trl.{name}" for name in LIGHT]
    assert not any(loaded_by(modules, ("torch", "transformers", "trl", "datasets")).values())
