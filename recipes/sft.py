"""
Fine-tune a vision-language model on prompt-completion data: alignment, stage 1, pre-training, instruction tuning.

accelerate launch recipes/sft.py --config recipes/digits/sft.yaml
"""

from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser, get_peft_config, get_quantization_config

from sicog_trl.data import MixtureConfig, load, load_mixture
from sicog_trl.training import (
    FreezeConfig,
    ResumableSFTTrainer,
    ViewsConfig,
    finished,
    freeze,
    show_views,
    train_and_save,
)


ARGUMENTS = (ScriptArguments, SFTConfig, ModelConfig, MixtureConfig, FreezeConfig, ViewsConfig)


def main(
    script_args: ScriptArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    mixture_args: MixtureConfig,
    freeze_args: FreezeConfig,
    views_args: ViewsConfig,
) -> None:
    """Load the data, build the trainer, train, save."""
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
    trainer = ResumableSFTTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    freeze(trainer.model, freeze_args)
    show_views(trainer, views_args)
    train_and_save(trainer, script_args.dataset_name)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
