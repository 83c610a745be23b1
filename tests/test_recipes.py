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


READMES = [ROOT / "README.md", *sorted(ROOT.glob("recipes/**/README.md"))]
MODEL_FOLDERS = sorted(path.parent for path in ROOT.glob("recipes/sicog/*/self_improve.yaml"))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_readmes_names_files_that_exist(readme):
    for name in re.findall(r"(?:recipes|accelerate_configs|benchmarks)/[\w/]+\.(?:py|yaml|md)", readme.read_text()):
        assert (ROOT / name).exists(), f"{readme.name} names {name}"


@pytest.mark.parametrize("folder", MODEL_FOLDERS, ids=lambda path: path.name)
def test_the_steps_of_a_model_name_the_recipe_of_their_yaml(folder):
    steps = re.findall(r"^ *run +(\w+) +(\w+) +(\w+)", (folder / "README.md").read_text(), re.MULTILINE)
    launched = {path.stem: LAUNCH.search(path.read_text())[1] for path in folder.glob("*.yaml")}
    for hardware, recipe, name in steps:
        assert (ROOT / "accelerate_configs" / f"{hardware}.yaml").exists()
        assert launched[name] == f"recipes/{recipe}.py"
    assert len({name for _, _, name in steps}) >= len(launched) - 2  # options in prose, and the whole line


def paths(value) -> set[str]:
    """Every path of a run that stands in a YAML."""
    if isinstance(value, str):
        return {value} if value.startswith("runs/") else set()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(*map(paths, parts))


@pytest.mark.parametrize("folder", MODEL_FOLDERS, ids=lambda path: path.name)
def test_the_stages_of_a_model_read_what_others_write(folder):
    common = list(folder.parent.glob("*.yaml"))
    made = {yaml.safe_load(path.read_text())["output_dir"] for path in [*common, *folder.glob("*.yaml")]}
    for readme in (folder / "README.md", folder.parent / "README.md"):
        made |= set(re.findall(r'(?:--output_dir |join |folder = ")(runs/[\w/]+)', readme.read_text()))
    for path in folder.glob("*.yaml"):
        read = paths({key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "output_dir"})
        parts = ("perception", "reasoning", "cognition")
        read = {name.replace("$part", part) for name in read for part in parts}
        assert read <= made, f"{path.name} reads {sorted(read - made)}, which nothing writes"
