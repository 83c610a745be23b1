"""
Train a vision-language model on preference pairs (`images`, `prompt`, `chosen`, `rejected`).

accelerate launch recipes/dpo.py --config recipes/digits/dpo.yaml
"""

from trl import DPOConfig, ModelConfig, ScriptArguments, TrlParser

from sicog_trl.checkpoints import check_model
from sicog_trl.data import MixtureConfig
from sicog_trl.training import (
    BatchConfig,
    FreezeConfig,
    ResumableDPOTrainer,
    already_trained,
    data_fingerprint,
    freeze,
    set_accumulation,
    settings_of,
    train_and_save,
    trainer_inputs,
    training_data,
)


ARGUMENTS = (ScriptArguments, DPOConfig, ModelConfig, MixtureConfig, BatchConfig, FreezeConfig)


def main(
    script_args: ScriptArguments,
    training_args: DPOConfig,
    model_args: ModelConfig,
    mixture_args: MixtureConfig,
    batch_args: BatchConfig,
    freeze_args: FreezeConfig,
) -> None:
    """Load the pairs, build the trainer, train, save."""
    check_model(model_args.model_name_or_path)
    set_accumulation(training_args, batch_args)
    source = (script_args, mixture_args, training_args.eval_strategy != "no")
    datasets = training_data("dpo", *source)
    configs = (training_args, script_args, model_args, mixture_args, freeze_args)
    settings = settings_of(*configs, data=data_fingerprint(*source))
    if already_trained(training_args, settings):
        return
    trainer = ResumableDPOTrainer(**trainer_inputs(training_args, model_args, *datasets))
    freeze(trainer.model, freeze_args)
    train_and_save(trainer, settings)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
