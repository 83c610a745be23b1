"""Every YAML parses with its own recipe, and what is misspelt is refused by name."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml
from trl import TrlParser


pytestmark = pytest.mark.usefixtures("bf16_everywhere")

ROOT = Path(__file__).parent.parent
YAMLS = sorted(ROOT.glob("recipes/*/**/*.yaml"))
RECIPES = sorted(path for path in ROOT.glob("recipes/**/*.py"))
LAUNCH = re.compile(r"^# .*?(recipes/\S+\.py) --config (\S+)$", re.MULTILINE)


def arguments_of(recipe: Path) -> tuple[type, ...]:
    name = "test_recipe_" + "_".join(recipe.relative_to(ROOT / "recipes").with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(name, recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.ARGUMENTS


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_law_6_every_yaml_parses_with_the_recipe_that_its_header_launches(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = LAUNCH.search(path.read_text())
    assert command, "the header shows the command that launches this YAML"
    assert ROOT / command[2] == path
    TrlParser(arguments_of(ROOT / command[1])).parse_args_and_config(["--config", str(path)])


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_law_6_an_unknown_key_is_refused_by_name(path, tmp_path, capsys):
    recipe = ROOT / LAUNCH.search(path.read_text())[1]
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(path.read_text() + "\nlearning_rat: 1\n")
    with pytest.raises((ValueError, SystemExit)) as error:
        TrlParser(arguments_of(recipe)).parse_args_and_config(["--config", str(misspelt)])
    assert "learning_rat" in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_vision_training_never_cuts_a_sequence(path):
    if LAUNCH.search(path.read_text())[1].endswith(("sft.py", "dpo.py")):
        assert yaml.safe_load(path.read_text())["max_length"] is None


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_stay_thin_and_say_how_they_are_launched(recipe):
    text = recipe.read_text()
    assert len(text.splitlines()) <= 120
    assert f"{recipe.relative_to(ROOT)} --" in text.split('"""')[1]


def test_every_command_of_the_readmes_names_files_that_exist():
    for readme in (ROOT / "README.md", ROOT / "recipes" / "README.md"):
        for name in re.findall(
            r"(?:recipes|accelerate_configs|benchmarks)/[\w/]+\.(?:py|yaml|md)", readme.read_text()
        ):
            assert (ROOT / name).exists(), f"{readme.name} names {name}"
