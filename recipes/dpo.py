"""
Train a vision-language model on preference pairs (`images`, `prompt`, `chosen`, `rejected`).

accelerate launch recipes/dpo.py --config recipes/digits/dpo.yaml
"""

from trl import DPOConfig, ModelConfig, ScriptArguments, TrlParser

from sicog_trl.checkpoints import check_model
from sicog_trl.data import MixtureConfig
from sicog_trl.freezing import FreezeConfig, freeze
from sicog_trl.resume import refuse_other_settings, settings_of
from sicog_trl.training import ResumableDPOTrainer, finished, train_and_save, trainer_inputs
from sicog_trl.training_data import data_fingerprint, refuse_placeholders, training_data


ARGUMENTS = (ScriptArguments, DPOConfig, ModelConfig, MixtureConfig, FreezeConfig)


def main(
    script_args: ScriptArguments,
    training_args: DPOConfig,
    model_args: ModelConfig,
    mixture_args: MixtureConfig,
    freeze_args: FreezeConfig,
) -> None:
    """Load the pairs, build the trainer, train, save."""
    check_model(model_args.model_name_or_path)
    eval_split = script_args.dataset_test_split if training_args.eval_strategy != "no" else None
    source = (mixture_args, script_args.dataset_name, script_args.dataset_config)
    splits = (script_args.dataset_train_split, eval_split)
    train_dataset, eval_dataset = training_data("dpo", *source, *splits)
    configs = (training_args, script_args, model_args, mixture_args, freeze_args)
    settings = settings_of(*configs, data=data_fingerprint(*source, *splits))
    refuse_other_settings(training_args.output_dir, settings)
    if finished(training_args.output_dir):
        print(f"{training_args.output_dir} holds a finished model; nothing to do")
        return
    for dataset in (train_dataset, eval_dataset):
        refuse_placeholders(dataset, model_args.model_name_or_path, model_args.model_revision)
    trainer = ResumableDPOTrainer(**trainer_inputs(training_args, model_args, train_dataset, eval_dataset))
    freeze(trainer.model, freeze_args)
    train_and_save(trainer, settings, script_args.dataset_name)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
