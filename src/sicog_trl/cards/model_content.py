"""What the card of a model says, for its template."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..prompts import prompt_for
from ..report import aligned_table, flat, read_json


_METHODS = {
    "sft": "supervised fine-tuning on prompts and the answers to them",
    "dpo": "direct preference optimization on pairs of a better and a worse answer",
}
_ASK = f"""

content = [
    {{"type": "image", "image": Image.open("image.png")}},
    {{"type": "text", "text": "{prompt_for("detailed_description")}"}},
]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device, model.dtype)
output = model.generate(**inputs, max_new_tokens=512, do_sample=False)
new_tokens = output[0, inputs["input_ids"].shape[1] :]
print(processor.decode(new_tokens, skip_special_tokens=True))
"""
_PARTS = ("vision_tower", "multi_modal_projector", "language_model")
_TOLD = """
    num_train_epochs max_steps global_batch_size learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
    weight_decay max_grad_norm neftune_noise_alpha bf16 fp16 dtype seed data_seed max_length packing
    train_sampling_strategy completion_only_loss assistant_only_loss loss_type beta label_smoothing image_views
    mixture_seed
""".split()
_TOLD_OF_ADAPTERS = """
    lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save use_rslora use_dora load_in_4bit
    load_in_8bit
""".split()
_COUNTS = {"steps": "steps", "samples": "rows seen", "tokens": "tokens seen", "last_loss": "last loss"}


def content(folder: Path, record: dict[str, Any], hub_model_id: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return what the template shows."""
    made = record.get("made_from") or {}
    settings = read_json(folder / "settings.json", dict) if made else {}
    adapter = made.get("adapter", (folder / "adapter_config.json").is_file())
    base, exact = made.get("base_model"), bool(made.get("exact"))
    if given.get("base_model"):
        base, exact = given["base_model"], True
    relation = ("adapter" if exact else None) if adapter else "finetune"
    name = hub_model_id or folder.absolute().name
    on = base if base and exact else made.get("base") or "base"
    revision = made.get("revision") if made.get("revision") != "main" else None
    return {
        "name": name,
        "published": hub_model_id is not None,
        "method": made.get("method"),
        "origin": Markup(_origin(made, base, exact, adapter)),
        "base_model": base,
        "exact": exact,
        "relation": relation if base else None,
        "adapter": adapter,
        "on": on,
        "quick_start": quick_start(name, on if adapter else None, revision),
        "datasets": made.get("datasets") or [],
        "linked": given.get("datasets") or [],
        "dataset_table": Markup(_dataset_table(made.get("datasets") or [])),
        "rows": made.get("rows"),
        "learning": _learning(settings, adapter),
        "settings": _told(settings),
        "counts": [(said, _number(record[key])) for key, said in _COUNTS.items() if record.get(key) is not None],
        "versions": list((record.get("versions") or {}).items()),
    }


def _origin(made: dict[str, Any], base: str | None, exact: bool, adapter: bool) -> str:
    """Return in words what a model comes from and how it was made."""
    if not made:
        return "How it was trained is not recorded here" + (f"; it comes from {hub_link(base)}." if base else ".")
    method = _METHODS.get(made["method"], plain(made["method"]))
    start = hub_link(base) if base == made["model"] else f"the model `{plain(made['model'])}`"
    said = [f"It is {'an adapter' if adapter else 'a model'} made with sicog-trl from {start} by {method}."]
    if adapter and made["base"] != made["model"]:
        below = hub_link(base) if exact else f"`{plain(made['base'])}`"
        said.append(f"That was an adapter already, for {below}.")
    elif base and base != made["model"]:
        said.append(f"That one is {hub_link(base)}." if exact else f"That one descends from {hub_link(base)}.")
    elif not base:
        said.append("None of the models that it descends from is known to be on the Hub.")
    return " ".join(said)


def _learning(settings: dict[str, Any], adapter: bool) -> str:
    """Return in words which parts learned."""
    frozen = [part.replace("_", " ") for part in _PARTS if settings.get(f"freeze_{part}")]
    learned = [part.replace("_", " ") for part in _PARTS if not settings.get(f"freeze_{part}")]
    if adapter:
        return f"An adapter learned; the weights below it are as they were. Frozen: {', '.join(frozen) or 'nothing'}."
    return f"What learned: {', '.join(learned)}. What was frozen: {', '.join(frozen) or 'nothing'}."


def _dataset_table(sources: list[dict[str, Any]]) -> str:
    rows = []
    for source in sources:
        name = hub_link(source["hub_id"], "datasets/") if source["hub_id"] else plain(source["name"])
        weight = source["weight"] if source["weight"] is not None else 1
        rows.append([name, plain(source["split"]), plain(source["revision"] or "-"), plain(weight)])
    return aligned_table(["dataset", "split", "revision", "weight"], rows, left=3) if rows else ""


def plain(value: Any) -> Markup:
    """Return a name as text that is no Markdown."""
    return Markup("".join(each if each.isalnum() or each in " ._-/" else "_" for each in str(value)))


def hub_link(hub_id: str, kind: str = "") -> Markup:
    """Return a link to a repository of the Hub, whose id may hold nothing that Markdown reads."""
    return Markup(f"[{hub_id}](https://huggingface.co/{kind}{hub_id})")


def quick_start(name: str, base: str | None = None, revision: str | None = None) -> str:
    """
    Return Python that asks the model about an image.

    Args:
        name (`str`):
            The model or the adapter.
        base (`str`, *optional*):
            What it is an adapter for.
        revision (`str`, *optional*):
            Revision of that.
    """
    name, base, revision = (text and json.dumps(text, ensure_ascii=False) for text in (name, base, revision))
    loaded = f"{base}, revision={revision}" if base and revision else base or name
    lines = ["from peft import PeftModel"] if base else []
    lines += ["from PIL import Image", "from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    lines.append(f"processor = AutoProcessor.from_pretrained({name})")
    lines.append(f'model = AutoModelForImageTextToText.from_pretrained({loaded}, device_map="auto")')
    lines += [f"model = PeftModel.from_pretrained(model, {name})"] if base else []
    return "\n".join(lines) + _ASK


def _told(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that matter as rows of a table, without those that are off."""
    names = [*_TOLD, *(_TOLD_OF_ADAPTERS if settings.get("use_peft") else [])]
    off = ("num_train_epochs",) if (settings.get("max_steps") or 0) > 0 else ("max_steps",)
    found = {name: settings[name] for name in names if name in settings and name not in off}
    found = {name: value for name, value in found.items() if value is not False and value not in (None, [], {}, "")}
    if settings:
        found["max_length"] = settings.get("max_length") or "none, no row is cut"
    return flat(found)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
