"""
Fine-tune a vision-language model on prompt-completion data: alignment, stage 1, pre-training, instruction tuning.

accelerate launch recipes/sft.py --config recipes/digits/sft.yaml
"""

from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

from sicog_trl.checkpoints import check_model
from sicog_trl.data import MixtureConfig
from sicog_trl.training import (
    BatchConfig,
    FreezeConfig,
    ResumableSFTTrainer,
    ViewsConfig,
    already_trained,
    data_fingerprint,
    freeze,
    set_accumulation,
    settings_of,
    show_views,
    train_and_save,
    trainer_inputs,
    training_data,
)


ARGUMENTS = (ScriptArguments, SFTConfig, ModelConfig, MixtureConfig, BatchConfig, FreezeConfig, ViewsConfig)


def main(
    script_args: ScriptArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    mixture_args: MixtureConfig,
    batch_args: BatchConfig,
    freeze_args: FreezeConfig,
    views_args: ViewsConfig,
) -> None:
    """Load the data, build the trainer, train, save."""
    check_model(model_args.model_name_or_path)
    set_accumulation(training_args, batch_args)
    source = (script_args, mixture_args, training_args.eval_strategy != "no")
    datasets = training_data("sft", *source)
    configs = (training_args, script_args, model_args, mixture_args, freeze_args, views_args)
    settings = settings_of(*configs, data=data_fingerprint(*source))
    if already_trained(training_args, settings):
        return
    trainer = ResumableSFTTrainer(**trainer_inputs(training_args, model_args, *datasets))
    freeze(trainer.model, freeze_args)
    show_views(trainer, views_args)
    train_and_save(trainer, settings)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
