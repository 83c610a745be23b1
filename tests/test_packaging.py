"""setup.py, constraints.txt and the Makefile agree with each other."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
NOT_IN_THE_STACK = {"vllm", "decord"}  # optional, and not part of what the tests run on


@pytest.fixture(scope="module")
def metadata() -> dict:
    """What setup.py hands to setuptools."""
    recorded = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **kwargs: recorded.update(kwargs))
        runpy.run_path(str(ROOT / "setup.py"))
    return recorded


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_has_floor_and_ceiling_around_its_pin(metadata, pins):
    groups = [metadata["install_requires"], *metadata["extras_require"].values()]
    for requirement in map(Requirement, (line for group in groups for line in group)):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), f"{requirement} needs a floor and a ceiling"
        if canonicalize_name(requirement.name) not in NOT_IN_THE_STACK:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_pins_hold_plain_versions(pins):
    assert "+" not in pins["torch"]  # a local build label cannot be installed elsewhere
    assert "torchvision" not in pins
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())


def test_version_is_the_packages(metadata):
    import sicog_trl

    assert metadata["version"] == sicog_trl.__version__


def test_makefile_and_extras_name_the_same(metadata):
    text = (ROOT / "Makefile").read_text()
    named = {extra for group in re.findall(r'-e "\.\[([^\]]+)\]"', text) for extra in group.split(",")}
    assert named and named <= set(metadata["extras_require"])
