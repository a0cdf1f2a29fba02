"""QLoRACLIP, QLoRALFA and the conversion of CLIP to transformers and back."""

import json
import logging
import shutil
import sys

import clip
import pytest
import torch
from clip.model import CLIP
from torchvision.transforms import Compose, Normalize

from domainbed import algorithms_qlora, backbones, hparams_registry, training
from domainbed.algorithms import get_algorithm_class
from domainbed.lib.errors import InputError
from domainbed.lib.optional import require
from domainbed.scripts import train

pytest.importorskip("transformers", reason="needs the extra qlora")
pytest.importorskip("peft", reason="needs the extra qlora")
pytest.importorskip("bitsandbytes", reason="needs the extra qlora")

from domainbed.backbones.conversion import (
    to_openai,
    to_transformers,
    transformers_clip,
)
from domainbed.backbones.qlora import QLoRABackbone, quantize

NAMES = ["dog", "sea_animal", "house"]
PROMPTS = ["a photo of a dog", "house", "a very long description of a sea animal"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def make(name="QLoRACLIP", **hparams):
    torch.manual_seed(0)
    default = hparams_registry.default_hparams(name, "EmojiDG")
    hparams = default | hparams | {"class_names": NAMES}
    return get_algorithm_class(name)((3, 48, 48), len(NAMES), 3, hparams)


def batches(sizes=(2, 3, 1)):
    torch.manual_seed(1)
    return [
        (torch.randn(size, 3, 48, 48), torch.randint(len(NAMES), (size,)))
        for size in sizes
    ]


def steps(algorithm, n):
    torch.manual_seed(2)
    return [algorithm.update(batches())["loss"] for _ in range(n)]


def small_clip():
    """Random weights; every size that can differ between the towers does."""
    torch.manual_seed(0)
    return CLIP(32, 32, 3, 128, 16, 77, 49408, 64, 4, 2).eval()


@pytest.mark.parametrize(
    "model", [small_clip(), backbones.read_clip("emoji")[0]], ids=["small", "emoji"]
)
@torch.no_grad()
def test_transformers_gives_clips_own_outputs(model):
    size = model.visual.input_resolution
    x, tokens = torch.randn(2, 3, size, size), clip.tokenize(PROMPTS)
    converted = transformers_clip(model).eval()
    image = converted.get_image_features(x).pooler_output
    text = converted.get_text_features(tokens).pooler_output
    logits = converted(pixel_values=x, input_ids=tokens).logits_per_image
    torch.testing.assert_close(image, model.encode_image(x), **CLOSE)
    torch.testing.assert_close(text, model.encode_text(tokens), **CLOSE)
    torch.testing.assert_close(logits, model(x, tokens)[0], rtol=1e-5, atol=1e-4)


def test_conversion_there_and_back_is_exact():
    model = small_clip()
    state = model.state_dict()
    back = to_openai(to_transformers(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], weight) for name, weight in state.items())
    other = CLIP(32, 32, 3, 128, 16, 77, 49408, 64, 4, 2)
    other.load_state_dict(to_openai(transformers_clip(model).state_dict()))
    assert all(torch.equal(w, state[n]) for n, w in other.state_dict().items())


@torch.no_grad()
def test_layer_features_are_clips():
    plain, lora = backbones.load_clip("emoji"), make(quant="none").eval().backbone
    x = torch.randn(3, 3, 48, 48)
    for ours, clips in (
        (lora.encode_image_layers(x), plain.encode_image_layers(x)),
        (lora.encode_text_layers(PROMPTS), plain.encode_text_layers(PROMPTS)),
        (lora.image_projection, plain.image_projection),
        (lora.text_projection, plain.text_projection),
        (lora.scale, plain.scale),
    ):
        torch.testing.assert_close(ours, clips, **CLOSE)


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
@torch.no_grad()
def test_fresh_adapters_are_the_quantised_zero_shot_model(quant):
    algorithm = make(quant=quant).eval()
    model = transformers_clip(backbones.load_clip("emoji").model).eval()
    quantize(model, quant)
    x, tokens = torch.randn(4, 3, 48, 48), clip.tokenize(algorithm.prompts)
    expected = model(pixel_values=x, input_ids=tokens).logits_per_image
    torch.testing.assert_close(algorithm.predict(x), expected, rtol=1e-3, atol=1e-3)
    unquantised = make("ZeroShotCLIP").predict(x)
    assert not torch.allclose(expected, unquantised, atol=0.01)


@torch.no_grad()
def test_without_quantisation_it_starts_at_zero_shot_clip():
    x = torch.randn(4, 3, 48, 48)
    torch.testing.assert_close(
        make(quant="none").eval().predict(x),
        make("ZeroShotCLIP").predict(x),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_only_adapters_train_and_are_saved(quant):
    algorithm = make(quant=quant, lr=0.1)  # A moves only as far as B has moved
    adapters = algorithm.backbone.adapters
    assert len(adapters) == 2 * 4 * (8 + 4)  # A and B of q, k, v, out in 12 blocks
    before = {n: p.clone() for n, p in algorithm.backbone.model.named_parameters()}
    steps(algorithm, 3)
    for name, parameter in algorithm.backbone.model.named_parameters():
        assert parameter.requires_grad == (name in adapters)
        assert torch.equal(parameter, before[name]) != (name in adapters), name
    state = algorithm.state_dict()
    assert state.keys() == {
        "backbone._extra_state",
        *(f"backbone.model.{name}" for name in adapters),
    }
    other = make(quant=quant)
    other.load_state_dict(state)
    x = torch.randn(5, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(algorithm.eval().predict(x), other.eval().predict(x))


def test_whatever_changes_the_output_changes_the_fingerprint():
    def name(**hparams):
        backbone = make(quant="none", **hparams).backbone
        for adapter in backbone.adapters.values():
            torch.nn.init.constant_(adapter, 0.01)
        return backbone.fingerprint

    towers = ({}, {"lora_alpha": 16}, {"lora_r": 2}, {"lora_targets": ["q_proj"]})
    assert len({name(**tower) for tower in towers}) == len(towers)
    assert name(lora_dropout=0.5) == name()


def test_bitsandbytes_says_nothing_of_a_kernel_that_is_not_there(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from %s", "somewhere")
    assert not caplog.records
    logger.warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]


def test_a_checkpoint_of_another_quantisation_is_refused():
    with pytest.raises(InputError, match="trained on CLIP weights"):
        make(quant="none").load_state_dict(make(quant="nf4").state_dict())


def test_an_evaluation_between_steps_changes_nothing():
    """bitsandbytes' layout for inference on a CPU would end all gradients."""
    straight, evaluated = make(), make()
    expected = steps(straight, 4)
    losses = steps(evaluated, 2)
    generator = torch.get_rng_state()
    with torch.no_grad():
        evaluated.eval().predict(torch.randn(3, 3, 48, 48))
    evaluated.train()
    torch.set_rng_state(generator)
    losses += [evaluated.update(batches())["loss"] for _ in range(2)]
    assert losses[:2] == expected[:2]
    assert len(set(losses)) == 4
    last = [p.grad for p in evaluated.backbone.adapters.values()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in last)


def test_the_same_seed_gives_the_same_run():
    assert steps(make(), 2) == steps(make(), 2)


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_rest_of_the_batch():
    algorithm, x = make().eval(), torch.randn(3, 3, 48, 48)
    alone = torch.cat([algorithm.predict(row[None]) for row in x])
    torch.testing.assert_close(algorithm.predict(x), alone, rtol=1e-3, atol=1e-3)


def test_layer_features_are_refused_where_the_tower_trains():
    with pytest.raises(InputError, match="needs images"):
        make(quant="none").predict(torch.randn(2, 8, 128))


def test_an_unknown_quantisation_is_refused():
    with pytest.raises(InputError, match="known: nf4, fp4, none"):
        make(quant="int4")


def test_what_peft_refuses_is_wrong_input():
    with pytest.raises(InputError, match="'q_prj'"):
        make(quant="none", lora_targets=["q_prj"])


def test_parameter_count_of_vit_b16(monkeypatch):
    transform = Compose([Normalize([0] * 3, [1] * 3)])
    monkeypatch.setattr("domainbed.backbones.qlora.fingerprint_of", lambda state: "")
    monkeypatch.setattr(
        QLoRABackbone, "encode_text_layers", lambda self, prompts: torch.zeros(3, 12, 9)
    )
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
        monkeypatch.setattr(
            algorithms_qlora, "read_clip", lambda name: (model, transform)
        )
        algorithm = make(quant="none")
    trainable = [p for p in algorithm.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == 491_520
    assert len(algorithm.optimizer.param_groups[0]["params"]) == len(trainable)


def run(folder, algorithm, hparams=None, **options):
    """Train two steps on the Debug data."""
    options = {"dataset": "Debug28", "steps": 2, "output_dir": folder} | options
    argv = [f"--{k}={v}" for k, v in options.items()]
    hparams = json.dumps({"batch_size": 2} | (hparams or {}))
    args = train.parse_args([*argv, "--algorithm", algorithm, "--hparams", hparams])
    folder.mkdir(exist_ok=True)
    prepared = training.Run(args)
    prepared.train()
    return prepared.algorithm.cpu().eval()


@pytest.mark.filterwarnings("ignore:no class names")
def test_lfa_on_a_tuned_clip(tmp_path):
    auto = {"qlora_run": "auto"}
    with pytest.raises(InputError, match=r"none in .* trial_seed 0.* run that first"):
        run(tmp_path / "second", "QLoRALFA", auto)
    tuned = run(tmp_path / "first", "CLIP_QLoRA", {"lr": 0.1, "quant": "fp4"})
    second = run(tmp_path / "second", "QLoRALFA", auto)
    adapters = tuned.backbone.adapters
    for name, adapter in second.backbone.adapters.items():
        assert torch.equal(adapter, adapters[name])
        assert not adapter.requires_grad
    assert second.backbone.get_extra_state().endswith("fp4")
    assert second.backbone.fingerprint == tuned.backbone.fingerprint
    trains = {name.split(".")[0] for name, p in second.named_parameters()
              if p.requires_grad}  # fmt: skip
    assert len(trains) == 8 and "backbone" not in trains
    x = torch.randn(4, 3, 28, 28)
    z = tuned.backbone.encode_image_layers(tuned.backbone.from_imagenet(x))
    torch.testing.assert_close(second.features(x), z)
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    again = training.load_algorithm(tmp_path / "second")
    assert again.hparams["qlora_run"] == str(tmp_path / "first")
    with torch.no_grad():
        assert torch.equal(again.predict(x), second.predict(x))
    named = {"qlora_run": str(tmp_path / "elsewhere")}
    with pytest.raises(InputError, match="trial_seed 1"):
        run(tmp_path / "third", "QLoRALFA", named, trial_seed=1)


def finished(folder, accuracy=0.5, backbone="emoji", **args):
    """A folder as a finished QLoRACLIP run leaves it, with an empty model."""
    folder.mkdir()
    record = {
        "args": RUN | {"algorithm": "QLoRACLIP"} | args,
        "hparams": {"clip_backbone": backbone},
        "env0_out_acc": 1 - accuracy,  # the test environment says the opposite
        "env1_out_acc": accuracy,
        "env1_in_acc": 1.0,
    }
    (folder / "results.jsonl").write_text(json.dumps(record) + "\n")
    for name in ("done", "model.pkl"):
        (folder / name).touch()
    return folder


RUN = {
    "dataset": "PACS",
    "test_envs": [0],
    "trial_seed": 0,
    "hparams_seed": 2,
    "holdout_fraction": 0.2,
    "uda_holdout_fraction": 0,
}


def test_which_first_stage(tmp_path):
    here = RUN | {"output_dir": str(tmp_path / "this")}

    def chosen(qlora_run="auto", run=here):
        return algorithms_qlora.first_stage(str(qlora_run), run, "emoji").name

    finished(tmp_path / "other_trial", 0.9, trial_seed=1)
    finished(tmp_path / "other_test_envs", 0.9, test_envs=[1])
    finished(tmp_path / "other_algorithm", 0.9, algorithm="LFA")
    finished(tmp_path / "other_backbone", 0.9, backbone="ViT-B/16")
    (finished(tmp_path / "unfinished", 0.9) / "done").unlink()
    (finished(tmp_path / "unsaved", 0.9) / "model.pkl").unlink()
    with pytest.raises(InputError, match="there is none in"):
        chosen()
    finished(tmp_path / "draw_0", 0.6, hparams_seed=0)
    finished(tmp_path / "draw_1", 0.8, hparams_seed=1)
    assert chosen() == "draw_1"  # the best on the training domains
    finished(tmp_path / "draw_2", 0.4, hparams_seed=2)
    assert chosen() == "draw_2"  # the same draw goes first
    assert chosen(tmp_path / "draw_0") == "draw_0"
    with pytest.raises(InputError, match="there is none in"):
        chosen(tmp_path / "other_trial")
    assert chosen(tmp_path / "other_trial", run=None) == "other_trial"
    with pytest.raises(InputError, match="outside of a run"):
        chosen(run=None)


@pytest.mark.filterwarnings("ignore:no class names")
def test_a_run_goes_on_with_the_first_stage_it_began_with(tmp_path):
    """Though `auto` finds a better one when it is started again."""
    options = {"quant": "none", "lora_alpha": 8}
    run(tmp_path / "first", "QLoRACLIP", {"lr": 0.1} | options)
    began = run(tmp_path / "second", "QLoRALFA", {"qlora_run": "auto"})
    state = began.training_state()
    shutil.rmtree(tmp_path / "second")
    found = run(tmp_path / "better", "QLoRACLIP", {"lr": 0.1, "lora_r": 2})
    shutil.rmtree(tmp_path / "first")
    again = run(tmp_path / "second", "QLoRALFA", {"qlora_run": "auto"})
    assert again.backbone.fingerprint == found.backbone.fingerprint
    again.load_training_state(state)
    assert again.backbone.fingerprint == began.backbone.fingerprint
    for name in ("qlora_run", "tower"):
        assert again.hparams[name] == began.hparams[name]
    x = torch.randn(4, 3, 28, 28)
    assert torch.equal(again.predict(x), began.predict(x))


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install domainbed-lfa\[qlora\]"):
        require("peft", "qlora")
