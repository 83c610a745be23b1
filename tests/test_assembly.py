"""Models assembled from their parts: the parts keep their bytes, and the line reads what comes out."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as T
from datasets import Dataset, Features
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from trl import SFTConfig
from trl.chat_template_utils import llama3_chat_template
from trl.data_utils import prepare_multimodal_messages

from sicog_trl.assembly import AssemblyConfig, assemble
from sicog_trl.checkpoints import check_model
from sicog_trl.data import IMAGES_FEATURES, MESSAGES
from sicog_trl.generation import Request, TransformersSampler
from sicog_trl.training.freezing import FreezeConfig, freeze
from sicog_trl.training.trainers import ResumableSFTTrainer


ROOT = Path(__file__).parents[1]
TRL_TEMPLATES = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
# Qwen2-7B-Instruct has this one, which TRL does not know.
QWEN2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n"
    "You are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN2 = {"special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "template": QWEN2_TEMPLATE}
QWEN2 |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
LLAMA = {"special": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
LLAMA |= {"template": (TRL_TEMPLATES / "llama3_1.jinja").read_text(), "bos_token": "<|begin_of_text|>"}
LLAMA |= {"eos_token": "<|end_of_text|>"}  # as the first releases of Llama 3 had it: not what ends a turn
TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 7}
IMAGE_TOKENS = 16
QUESTION, ANSWER = "What is to be seen?", "A red square on a green meadow."


def tokenizer(special: list[str], template: str | None, **named: str) -> T.PreTrainedTokenizerFast:
    """A byte-level BPE; like Llama's, it puts its own token in front of a text if it has one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=special)
    made.train_from_iterator([QUESTION, ANSWER, QWEN2_TEMPLATE], trainer)
    if start := named.get("bos_token"):
        pieces = {"single": f"{start} $A", "pair": f"{start} $A $B", "special_tokens": [(start, special.index(start))]}
        made.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(**pieces)]
        )
    fast = T.PreTrainedTokenizerFast(tokenizer_object=made, **named)
    fast.chat_template = template
    return fast


def language_model(folder: Path, family: type, settings: dict, spare_rows: int = 0, **config) -> str:
    words = tokenizer(**settings)
    stop = words.eos_token_id
    made = family.config_class(**TEXT, vocab_size=len(words) + spare_rows, eos_token_id=stop, bos_token_id=0, **config)
    torch.manual_seed(1)
    family(made).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def clip(folder: Path) -> str:
    text = T.CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(2)
    model = T.CLIPModel(T.CLIPConfig(text_config=text.to_dict(), vision_config=VISION, projection_dim=8))
    model.to(torch.bfloat16).save_pretrained(folder)
    T.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the parts."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "clip": clip(folder / "clip"),
        "qwen2": language_model(folder / "qwen2", T.Qwen2ForCausalLM, QWEN2, spare_rows=40),
        "llama": language_model(folder / "llama", T.LlamaForCausalLM, LLAMA),
        "tied": language_model(folder / "tied", T.Qwen2ForCausalLM, QWEN2, tie_word_embeddings=True),
    }


@pytest.fixture(scope="module")
def assembled(sources, tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """Folder and summary of each language model with the tower."""
    folder = tmp_path_factory.mktemp("assembled")
    names = ("qwen2", "llama", "tied")
    return {name: (folder / name, assemble(config_of(sources, name, folder / name))) for name in names}


def config_of(sources: dict[str, str], name: str, folder: Path, **options) -> AssemblyConfig:
    return AssemblyConfig(
        output_dir=str(folder), language_model=sources[name], vision_tower=sources["clip"], **options
    )


def picture(width: int = 40, height: int = 23) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((width, height))


def row(prompt: str = QUESTION) -> dict:
    return {
        "images": [picture()],
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": ANSWER}],
    }


@pytest.mark.parametrize("name", ["qwen2", "llama", "tied"])
def test_the_parts_keep_every_bit(assembled, sources, name):
    model = T.AutoModelForImageTextToText.from_pretrained(assembled[name][0], dtype="auto")
    tower = T.CLIPModel.from_pretrained(sources["clip"], dtype="auto").vision_model.state_dict()
    decoder = T.AutoModelForCausalLM.from_pretrained(sources[name], dtype="auto")
    assert model.dtype == torch.bfloat16
    found = model.model.vision_tower.state_dict()
    assert found.keys() == tower.keys()
    assert all(torch.equal(found[key], tower[key]) for key in tower)
    found = {**model.model.language_model.state_dict(), "head": model.lm_head.weight}
    wanted = {**decoder.model.state_dict(), "head": decoder.lm_head.weight}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key][: len(wanted[key])], wanted[key]) for key in wanted)


def test_new_rows_are_the_mean_of_the_others_and_spare_rows_are_used_first(assembled, sources):
    sizes = {name: T.AutoConfig.from_pretrained(sources[name]).vocab_size for name in ("qwen2", "llama")}
    models = {name: T.AutoModelForImageTextToText.from_pretrained(assembled[name][0], dtype="auto") for name in sizes}
    assert models["qwen2"].model.language_model.embed_tokens.weight.shape[0] == sizes["qwen2"]
    for layer in (models["llama"].model.language_model.embed_tokens, models["llama"].lm_head):
        old, new = layer.weight[: sizes["llama"]], layer.weight[sizes["llama"] :]
        assert len(new) and layer.weight.shape[0] % 64 == 0
        assert torch.equal(new, old.float().mean(dim=0).to(torch.bfloat16).expand_as(new))


@pytest.mark.parametrize("name", ["qwen2", "llama", "tied"])
def test_an_image_is_the_number_of_tokens_that_the_tower_gives(assembled, name):
    folder, summary = assembled[name]
    check_model(str(folder))
    processor = T.AutoProcessor.from_pretrained(folder)
    model = T.AutoModelForImageTextToText.from_pretrained(folder)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert f"<image>\n{QUESTION}" in text
    for size in ((40, 23), (5, 90)):  # whatever its shape
        inputs = processor(images=picture(*size), text=text, return_tensors="pt")
        count = int((inputs["input_ids"] == model.config.image_token_id).sum())
        features = model.get_image_features(inputs["pixel_values"]).pooler_output
        assert count == IMAGE_TOKENS == summary["image_tokens"] == len(features[0])


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_text_comes_out_as_from_the_language_model_itself(assembled, sources, name):
    own = T.AutoTokenizer.from_pretrained(sources[name])
    processor = T.AutoProcessor.from_pretrained(assembled[name][0])
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", QUESTION)]
    strings = [{"role": role, "content": content} for role, content in turns]
    typed = [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in turns]
    for messages in (strings, typed, strings[1:]):
        wanted = own.apply_chat_template(
            strings if messages is typed else messages, tokenize=False, add_generation_prompt=True
        )
        assert processor.apply_chat_template(messages, add_generation_prompt=True) == wanted


@pytest.mark.parametrize(("name", "end"), [("qwen2", "<|im_end|>\n"), ("llama", "<|eot_id|>")])
def test_the_answer_and_the_end_of_its_turn_alone_are_marked(assembled, name, end):
    folder, summary = assembled[name]
    processor = T.AutoProcessor.from_pretrained(folder)
    turn = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    messages = [*prepare_multimodal_messages(row()["prompt"], images=[picture()]), turn]
    read = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    marked = read["input_ids"][0][torch.as_tensor(read["assistant_masks"])[0].bool()]
    assert processor.tokenizer.decode(marked) == ANSWER + end
    assert summary["assistant_only_loss"]


@pytest.mark.parametrize(
    ("template", "marked"), [(llama3_chat_template, True), ("{{ messages[0]['content'] }}", False)]
)
def test_marks_are_taken_from_trl_or_left_out_and_said(sources, tmp_path, template, marked):
    (tmp_path / "template.jinja").write_text(template)
    summary = assemble(
        config_of(sources, "llama", tmp_path / "model", chat_template_path=str(tmp_path / "template.jinja"))
    )
    assert summary["assistant_only_loss"] is marked


def test_answers_end_where_their_turns_do(assembled):
    for name, stop in (("qwen2", {"<|im_end|>"}), ("llama", {"<|end_of_text|>", "<|eot_id|>"})):
        folder, summary = assembled[name]
        settings = T.GenerationConfig.from_pretrained(folder)
        words = T.AutoTokenizer.from_pretrained(folder)
        assert set(words.convert_ids_to_tokens(settings.eos_token_id)) == set(summary["stop_tokens"]) == stop
        assert settings.pad_token_id == words.pad_token_id is not None
        assert words.pad_token not in stop


def test_padding_is_the_token_that_the_model_keeps_for_it(assembled, sources, tmp_path):
    settings = {**LLAMA, "special": [*LLAMA["special"], "<|finetune_right_pad_id|>"]}
    kept = language_model(tmp_path / "llama", T.LlamaForCausalLM, settings)
    summary = assemble(config_of({**sources, "llama": kept}, "llama", tmp_path / "model"))
    assert summary["pad_token"] == "<|finetune_right_pad_id|>"
    assert [assembled[name][1]["pad_token"] for name in ("qwen2", "llama")] == ["<|endoftext|>", "<pad>"]


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_it_is_asked_as_it_is_trained(assembled, name):
    sampler = TransformersSampler(str(assembled[name][0]), max_completion_length=6, batch_size=4)
    request = Request([picture()], QUESTION, [1, 2])
    [(_, answers)] = sampler.sample([request])
    assert [answer.num_tokens for answer in answers] and len({answer.text for answer in answers}) == 2
    trainer = trainer_of(assembled[name][0], Path("unused"))
    trained = trainer.data_collator([row()])["input_ids"][0].tolist()
    asked = sampler._encode([request], [sampler.render(request)])["input_ids"][0].tolist()
    assert trained[: len(asked)] == asked  # one token at the start of a text, not two


def trainer_of(model: Path, output_dir: Path, freezing: FreezeConfig | None = None) -> ResumableSFTTrainer:
    features = Features({"images": IMAGES_FEATURES["images"], "prompt": MESSAGES, "completion": MESSAGES})
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_length": None}
    settings |= {"bf16": False, "use_cpu": True, "activation_checkpointing": False, "report_to": "none"}
    args = SFTConfig(output_dir=str(output_dir), **settings)
    dataset = Dataset.from_list([row(), row("And now?")] * 2, features=features)
    trainer = ResumableSFTTrainer(model=str(model), args=args, train_dataset=dataset)
    if freezing:
        freeze(trainer.model, freezing)
    return trainer


def test_alignment_moves_the_projector_alone_and_may_be_continued_or_taken_over(assembled, sources, tmp_path):
    source = assembled["llama"][0]
    trainer = trainer_of(source, tmp_path / "align", FreezeConfig(True, False, True))
    trainer.train()
    trainer.save_model(str(tmp_path / "align"))
    # The next model starts from the parts and the aligned projector, or from the alignment's own checkpoint. That one
    # was trained in float32, of which the parts are still the bfloat16 that they were.
    assemble(config_of(sources, "llama", tmp_path / "fresh", projector=str(tmp_path / "align")))
    before, aligned, fresh = (
        T.AutoModelForImageTextToText.from_pretrained(folder, dtype="bfloat16").state_dict()
        for folder in (source, tmp_path / "align", tmp_path / "fresh")
    )
    moved = {key.split(".")[1] for key in before if not torch.equal(before[key], aligned[key])}
    assert moved == {"multi_modal_projector"}
    assert aligned.keys() == fresh.keys()
    assert all(torch.equal(aligned[key], fresh[key]) for key in aligned)


def test_law_3_the_same_seed_gives_the_same_bytes(assembled, sources, tmp_path):
    summaries = {seed: assemble(config_of(sources, "qwen2", tmp_path / str(seed), seed=seed)) for seed in (0, 1)}
    first = assembled["qwen2"][0]
    for file in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer.json",
    ):
        assert (tmp_path / "0" / file).read_bytes() == (first / file).read_bytes()
    weights = [load_file(tmp_path / str(seed) / "model.safetensors") for seed in (0, 1)]
    assert summaries[0]["weights"] != summaries[1]["weights"]
    assert {key for key in weights[0] if not torch.equal(weights[0][key], weights[1][key])} == {
        f"multi_modal_projector.linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")
    }


def test_a_siglip_has_no_class_token_to_leave_out(sources, tmp_path):
    torch.manual_seed(3)
    T.SiglipVisionModel(T.SiglipVisionConfig(**VISION)).save_pretrained(tmp_path / "siglip")
    T.SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "siglip")
    assemble(config_of({**sources, "clip": str(tmp_path / "siglip")}, "qwen2", tmp_path / "model"))
    sampler = TransformersSampler(str(tmp_path / "model"), max_completion_length=3)
    request = Request([picture()], QUESTION, [1])
    ids = sampler._encode([request], [sampler.render(request)])["input_ids"][0]
    assert int((ids == sampler.model.config.image_token_id).sum()) == IMAGE_TOKENS
    assert len(list(sampler.sample([request]))) == 1


def test_a_finished_run_is_left_alone_and_a_killed_one_done_again(assembled, sources, tmp_path):
    config = config_of(sources, "qwen2", tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stage.json").write_text("{}")  # self_improve.py writes it before a stage starts
    summary = assemble(config)
    weights = tmp_path / "model" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert assemble(config) == summary
    assert weights.stat().st_mtime_ns == written
    weights.write_bytes(b"cut off")
    (tmp_path / "model" / "summary.json").unlink()
    assert assemble(config)["weights"] == summary["weights"]


def test_another_run_is_not_overwritten(sources, tmp_path):
    config = config_of(sources, "qwen2", tmp_path / "model")
    assemble(config)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="seed is 0 there and 5 here"):
        assemble(replace(config, seed=5))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("unique")
    with pytest.raises(FileExistsError, match=r"chapter\.txt"):
        assemble(replace(config, output_dir=str(tmp_path / "thesis")))
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def encoder(folder: Path) -> str:
    small = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    T.BertForMaskedLM(T.BertConfig(**small, vocab_size=50)).save_pretrained(folder)
    return str(folder)


def test_a_wrong_part_is_named(assembled, sources, tmp_path):
    right = config_of(sources, "qwen2", tmp_path / "model")
    bert = encoder(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"vision_tower: .*llama.* has no vision config"):
        assemble(replace(right, vision_tower=sources["llama"]))
    with pytest.raises(ValueError, match=r"language_model: .*bert.* saved as BertForMaskedLM, which is not a decoder"):
        assemble(replace(right, language_model=bert))
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration, which is not a decoder of text alone"):
        assemble(replace(right, language_model=str(assembled["qwen2"][0])))
    with pytest.raises(FileNotFoundError, match=r"projector: folder .*nowhere does not exist"):
        assemble(replace(right, projector=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="torch has no 'bf16'"):
        replace(right, dtype="bf16")
    assert not (tmp_path / "model").exists()


def test_missing_weights_and_other_projectors_are_refused(assembled, sources, tmp_path):
    right = config_of(sources, "qwen2", tmp_path / "model")
    other = language_model(tmp_path / "other", T.Qwen2ForCausalLM, QWEN2)
    weights = load_file(tmp_path / "other" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of Qwen2ForCausalLM, such as model.norm.weight"):
        assemble(replace(right, language_model=other, output_dir=str(tmp_path / "a")))
    silent = language_model(tmp_path / "silent", T.LlamaForCausalLM, {**LLAMA, "template": None})
    with pytest.raises(ValueError, match="no chat template"):
        assemble(replace(right, language_model=silent, output_dir=str(tmp_path / "b")))
    assert not (tmp_path / "b").exists()  # nothing there that would refuse the next try
    aligned = str(assembled["qwen2"][0])
    with pytest.raises(ValueError, match="aligned with vision_feature_layer -2, here it is -1"):
        assemble(replace(right, projector=aligned, vision_feature_layer=-1, output_dir=str(tmp_path / "c")))
    wide = {**TEXT, "hidden_size": 64}
    words = tokenizer(**QWEN2)
    T.Qwen2ForCausalLM(T.Qwen2Config(**wide, vocab_size=len(words))).save_pretrained(tmp_path / "wide")
    words.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"holds .*\(48, 32\).*need .*\(64, 32\)"):
        assemble(
            replace(right, language_model=str(tmp_path / "wide"), projector=aligned, output_dir=str(tmp_path / "d"))
        )


def test_a_language_model_that_would_say_something_else_in_a_llava_is_refused(sources, tmp_path):
    """LLaVA has no bias in its head and no cap or scale of logits; Transformers would leave them out with a note."""
    small = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    words = tokenizer(**QWEN2)
    ids = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": 0, "pad_token_id": 0}
    T.PhiForCausalLM(T.PhiConfig(**small, **ids)).save_pretrained(tmp_path / "bias")
    cohere = T.CohereForCausalLM(T.CohereConfig(**TEXT, **ids, logit_scale=0.25))
    torch.nn.init.normal_(cohere.model.embed_tokens.weight)
    cohere.save_pretrained(tmp_path / "scale")
    for name, message in (("bias", "head of .*bias has a bias"), ("scale", "does not say the same within a LLaVA")):
        words.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            assemble(config_of({**sources, "it": str(tmp_path / name)}, "it", tmp_path / "model"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_that_the_tower_has_not_is_refused(sources, tmp_path, layer):
    with pytest.raises(ValueError, match=rf"vision_feature_layer is {layer}; the tower has 4, from -4 to -1"):
        assemble(config_of(sources, "qwen2", tmp_path / "model", vision_feature_layer=layer))


def test_the_recipe_assembles(sources, tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("recipe_assemble", ROOT / "recipes" / "assemble.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.main(config_of(sources, "llama", tmp_path / "model"))
    said = capsys.readouterr().out
    assert json.loads(said[said.index("{") :])["image_tokens"] == IMAGE_TOKENS
