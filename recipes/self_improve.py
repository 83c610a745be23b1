"""
The whole line from one YAML: base model to report. Done stages are skipped, a stage that was cut off goes on.

python recipes/self_improve.py --config recipes/digits/self_improve.yaml
"""

import importlib.util
import json
import sys
from pathlib import Path

from trl import TrlParser

from sicog_trl.loop import LoopConfig, Stage, run, stages
from sicog_trl.report import summary_table, write_report


RECIPES = Path(__file__).parent
ARGUMENTS = (LoopConfig,)


def arguments_of(recipe: str) -> tuple[type, ...]:
    """Return the dataclasses that a recipe parses."""
    name = "recipe_" + recipe.replace("/", "_").removesuffix(".py")  # a bare `evaluate` is another package
    spec = importlib.util.spec_from_file_location(name, RECIPES / recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.ARGUMENTS


def check(plan: list[Stage]) -> None:
    """Parse the arguments of every stage now, so that a typo in the last stage costs nothing."""
    for stage in plan:
        try:
            TrlParser(arguments_of(stage.recipe)).parse_dict(dict(stage.config))
        except (TypeError, ValueError) as error:
            raise SystemExit(f"stage {stage.name} ({stage.recipe}): {error}") from error


def main(config: LoopConfig) -> None:
    """Check, run, report."""
    check(stages(config))
    folder = run(config, RECIPES)
    if not config.evaluate:
        print(f"{folder}: all stages are done; without the section `evaluate` there are no scores and no report")
        return
    report = write_report(folder)
    print(summary_table(json.loads((folder / "evaluate" / "scores.json").read_text())))
    print(f"\nreport: {report}")


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
