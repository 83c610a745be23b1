"""
Train a vision-language model on preference pairs (`images`, `prompt`, `chosen`, `rejected`).

accelerate launch recipes/dpo.py --config recipes/digits/dpo.yaml
"""

from trl import DPOConfig, ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from sicog_trl.data import MixtureConfig, load, load_mixture
from sicog_trl.training import FreezeConfig, ResumableDPOTrainer, finished, freeze, train_and_save


ARGUMENTS = (ScriptArguments, DPOConfig, ModelConfig, MixtureConfig, FreezeConfig)


def main(
    script_args: ScriptArguments,
    training_args: DPOConfig,
    model_args: ModelConfig,
    mixture_args: MixtureConfig,
    freeze_args: FreezeConfig,
) -> None:
    """Load the pairs, build the trainer, train, save."""
    if finished(training_args.output_dir):
        print(f"{training_args.output_dir} holds a finished model; nothing to do")
        return
    if mixture_args.datasets:
        dataset = load_mixture(mixture_args)
    else:
        dataset = load(script_args.dataset_name, script_args.dataset_config, script_args.dataset_train_split)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    # By name, not as an instance: TRL loads the reference model from that name, and it must be this very model.
    trainer = ResumableDPOTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    freeze(trainer.model, freeze_args)
    train_and_save(trainer, script_args.dataset_name)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
