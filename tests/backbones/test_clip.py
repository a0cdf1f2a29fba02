"""The towers that return every layer agree with OpenAI's forward passes."""

import math
import os

import clip
import numpy as np
import pytest
import safetensors.torch
import torch
from clip.model import CLIP

from domainbed import backbones
from domainbed.backbones.conversion import to_transformers
from domainbed.backbones.weights import read_state
from domainbed.lib.errors import InputError
from domainbed.lib.transforms import IMAGENET_MEAN, IMAGENET_STD

PROMPTS = ["a photo of a dog", "house", "a very long description of a sea animal"]


@pytest.fixture(scope="module")
def emoji():
    return backbones.load_clip("emoji")


def save_clip(path, **sizes):
    torch.manual_seed(0)
    default = {
        "embed_dim": 32,
        "image_resolution": 32,
        "vision_layers": 3,
        "vision_width": 64,
        "vision_patch_size": 16,
        "context_length": 77,
        "vocab_size": 49408,
        "transformer_width": 64,
        "transformer_heads": 1,
        "transformer_layers": 2,
    }
    torch.save(CLIP(**default | sizes).state_dict(), path)


@torch.no_grad()
def test_last_layers_projection_is_clips_own_encoding(emoji):
    x = torch.randn(3, 3, 48, 48)
    z = emoji.encode_image_layers(x)
    assert z.shape == (3, 8, 128)
    expected = emoji.model.encode_image(x)
    torch.testing.assert_close(z[:, -1] @ emoji.image_projection, expected)
    t = emoji.encode_text_layers(PROMPTS)
    assert t.shape == (3, 4, 128)
    expected = emoji.model.encode_text(clip.tokenize(PROMPTS))
    torch.testing.assert_close(t[:, -1] @ emoji.text_projection, expected)


@torch.no_grad()
def test_every_layer_is_the_end_of_a_shorter_clip(emoji):
    x = torch.randn(2, 3, 48, 48)
    z, t = emoji.encode_image_layers(x), emoji.encode_text_layers(PROMPTS)
    blocks = emoji.model.visual.transformer.resblocks, emoji.model.transformer.resblocks
    for tower, layers, encode in (
        (blocks[0], z @ emoji.image_projection, lambda: emoji.model.encode_image(x)),
        (
            blocks[1],
            t @ emoji.text_projection,
            lambda: emoji.model.encode_text(clip.tokenize(PROMPTS)),
        ),
    ):
        removed = []
        while len(tower):
            torch.testing.assert_close(layers[:, len(tower) - 1], encode())
            removed.insert(0, tower[-1])
            del tower[-1]
        tower.extend(removed)


def test_prompts_get_gradients_and_weights_do_not(emoji):
    tokens = clip.tokenize(PROMPTS)
    embeddings = emoji.model.token_embedding(tokens).requires_grad_()
    eot = tokens.argmax(1)
    t = emoji.encode_prompts(embeddings, eot)
    with torch.no_grad():
        torch.testing.assert_close(t, emoji.encode_text_layers(PROMPTS))
    t.sum().backward()
    for prompt, end in enumerate(eot):
        grad = embeddings.grad[prompt].abs().sum(1)
        assert (grad[: end + 1] > 0).all()
        assert (grad[end + 1 :] == 0).all()  # attention is causal
    assert all(p.grad is None for p in emoji.parameters())


def test_a_prompt_of_too_many_tokens_is_named(emoji):
    long = "very " * 80 + "long"
    with pytest.raises(InputError, match=f"prompt '{long}' is longer than CLIP's 77"):
        emoji.encode_text_layers(["short", long])


def test_backbone_stays_frozen_and_in_eval_mode(emoji):
    emoji.train()
    assert not emoji.training
    assert not emoji.model.training
    assert not any(p.requires_grad for p in emoji.parameters())


def test_a_backbone_in_eval_mode_is_not_walked_again(emoji, monkeypatch):
    emoji.train()
    monkeypatch.setattr(torch.nn.Module, "modules", None)
    monkeypatch.setattr(torch.nn.Module, "children", None)
    assert emoji.train() is emoji.eval() is emoji


def test_texts_are_kept_with_the_same_bits_and_fingerprints_of_the_file(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "tiny.pt"
    save_clip(path)

    def load():
        backbones.read_clip.cache_clear()
        return backbones.load_clip(str(path))

    tiny = load()
    expected = tiny.encode_text_layers(PROMPTS)
    assert torch.equal(tiny.kept_text_layers(PROMPTS), expected)
    with monkeypatch.context() as patch:
        patch.delattr(backbones.CLIPBackbone, "encode_text_layers")
        patch.setattr(backbones.clip, "fingerprint_of", None)
        again = load()
        assert again.fingerprint == tiny.fingerprint
        assert torch.equal(again.kept_text_layers(PROMPTS), expected)
    save_clip(path, vision_width=128)
    assert load().fingerprint != tiny.fingerprint
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tiny.kept_text_layers(PROMPTS)
    assert not torch.equal(rounded, expected)


def test_a_changed_tower_has_a_fingerprint_and_texts_of_its_own(emoji):
    whole = emoji.kept_text_layers(PROMPTS)
    shorter = backbones.load_clip("emoji")
    del shorter.model.transformer.resblocks[-1]
    assert shorter.fingerprint != emoji.fingerprint
    assert torch.equal(shorter.kept_text_layers(PROMPTS)[:, 0], whole[:, 0])
    assert shorter.kept_text_layers(PROMPTS).shape[1] == whole.shape[1] - 1


def test_a_state_dict_holds_the_fingerprint_only(emoji, tmp_path):
    state = emoji.state_dict()
    assert list(state.values()) == [emoji.fingerprint]
    backbones.load_clip("emoji").load_state_dict(state)
    save_clip(tmp_path / "other.pt")
    other = backbones.load_clip(str(tmp_path / "other.pt"))
    with pytest.raises(
        InputError, match=f"trained on CLIP weights {emoji.fingerprint}"
    ):
        other.load_state_dict(state)


def test_all_share_the_weights_and_nothing_else():
    emoji, other = backbones.load_clip("emoji"), backbones.load_clip("emoji")
    assert other.fingerprint == emoji.fingerprint
    pairs = zip(other.parameters(), emoji.parameters(), strict=True)
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    other.double()
    other.model.visual.proj = torch.nn.Parameter(torch.zeros(1))
    assert {p.dtype for p in emoji.parameters()} == {torch.float32}
    assert emoji.image_projection.any()


def test_weights_are_those_of_the_file_whatever_would_be_drawn():
    """To read them draws none, and leaves the generators where they were."""
    backbones.read_clip.cache_clear()
    before = torch.get_rng_state()
    model, _ = backbones.read_clip("emoji")
    assert torch.equal(torch.get_rng_state(), before)
    state = read_state(backbones.EMOJI_CLIP)
    read = model.state_dict()
    assert read.keys() <= state.keys()
    assert all(torch.equal(read[name], state[name].float()) for name in read)


def test_sizes_are_read_from_the_checkpoint(tmp_path):
    save_clip(tmp_path / "tiny.pt")
    tiny = backbones.load_clip(str(tmp_path / "tiny.pt"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        z = tiny.encode_image_layers(x)
        torch.testing.assert_close(
            z[:, -1] @ tiny.image_projection, tiny.model.visual(x)
        )
    assert z.shape == (2, 3, 64)
    assert tiny.resolution == 32


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_for_imagenet_become_images_for_clip(emoji, channels):
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    flat = (torch.full((1, 3, 10, 10), 0.25) - mean) / std
    x = emoji.from_imagenet(flat[:, :channels])
    assert x.shape == (1, 3, 48, 48)
    clip_mean, clip_std = torch.tensor(emoji.normalize.mean), emoji.normalize.std
    grey = (0.25 - clip_mean) / torch.tensor(clip_std)
    if channels == 3:
        torch.testing.assert_close(x.mean((0, 2, 3)), grey)
    else:
        torch.testing.assert_close(x[:, 0].mean(), grey[0])


def test_a_resnet_clip_is_refused(tmp_path):
    # OpenAI's loader infers a ResNet from the layers' names.
    save_clip(tmp_path / "resnet.pt", vision_layers=(1, 1, 1, 1), image_resolution=64)
    with pytest.raises(InputError, match="a ResNet CLIP has no residual token layers"):
        backbones.load_clip(str(tmp_path / "resnet.pt"))


def checkpoints():
    """Ways in which people's files hold the emoji CLIP's weights."""
    state = dict(backbones.read_clip("emoji")[0].state_dict())
    ddp = {f"module.{name}": weight for name, weight in state.items()}
    hub = {n: w.contiguous() for n, w in to_transformers(state).items()}
    return {
        "plain": state,
        "open_clip": {"epoch": 3, "name": "run", "optimizer": {}, "state_dict": ddp},
        "nested": {"model": {"state_dict": state}},
        "compiled": {f"module._orig_mod.{name}": w for name, w in state.items()},
        "numpy": {"epoch": np.float64(3), "best": np.float32(1), "state_dict": state},
        "transformers": hub,
    }


@pytest.mark.filterwarnings("ignore:.*QuickGELU")
@pytest.mark.parametrize(
    "kind", ["plain", "open_clip", "nested", "compiled", "numpy", "transformers"]
)
def test_weights_are_found_in_any_checkpoint(kind, emoji, tmp_path):
    torch.save(checkpoints()[kind], tmp_path / "x.pt")
    assert backbones.load_clip(f"{tmp_path}/x.pt").fingerprint == emoji.fingerprint


@pytest.mark.filterwarnings("ignore:.*QuickGELU")
def test_a_folder_of_transformers_is_read(emoji, tmp_path):
    weights = checkpoints()["transformers"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    assert backbones.load_clip(str(tmp_path)).fingerprint == emoji.fingerprint


def lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def cut(path):
    torch.save(checkpoints()["plain"], path)
    path.write_bytes(path.read_bytes()[:9999])


@pytest.mark.parametrize(
    "write, says",
    [
        (lambda path: path.touch(), "nothing: it is empty"),
        (lambda path: path.write_text("<html>Quota exceeded</html>"), "a web page"),
        (lfs, "a Git LFS pointer"),
        (cut, "half of a file"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "pickled objects"),
        (lambda path: torch.save({"a.b": torch.ones(1)}, path), "1 entries, .*'a.b'"),
        (lambda path: torch.save([1, 2], path), "a list"),
        (lambda path: path.write_bytes(b"\x80\x04junk"), "pickled objects"),
    ],
)
def test_a_file_that_holds_no_clip_is_named(write, says, tmp_path):
    write(tmp_path / "x.pt")
    with pytest.raises(
        InputError, match=f"{tmp_path}/x.pt holds no CLIP, but .*{says}"
    ):
        backbones.load_clip(f"{tmp_path}/x.pt")


@pytest.mark.parametrize(
    "name, change, says",
    [
        (
            "visual.proj",
            lambda w: w * math.nan,
            "holds no CLIP.* NaN or infinity in it",
        ),
        ("visual.proj", lambda w: w.to(torch.int8), "'visual.proj' in int8; its scale"),
        ("visual.proj", lambda w: w.to("meta"), "without all of its numbers"),
        ("visual.proj", lambda w: w.tolist(), "a list as 'visual.proj'"),
        ("text_projection", lambda w: w.sum(), "is no CLIP's: "),
        ("ln_final.weight", None, "lacks 'ln_final.weight'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*QuickGELU")
def test_weights_that_compute_nothing_are_named(name, change, says, tmp_path):
    """Whole numbers without their scale gave other features, NaN an accuracy of nan."""
    state = dict(checkpoints()["plain"])
    weight = state.pop(name)
    torch.save(state | ({name: change(weight)} if change else {}), tmp_path / "x.pt")
    with pytest.raises(InputError, match=f"x.pt.* {says}"):
        backbones.load_clip(f"{tmp_path}/x.pt")


@pytest.mark.filterwarnings("ignore:.*QuickGELU")
def test_a_file_is_what_it_holds_whatever_its_name(emoji, tmp_path):
    """An open_clip folder of the hub has names of its own, too."""
    weights = {name: w.contiguous() for name, w in checkpoints()["plain"].items()}
    safetensors.torch.save_file(weights, tmp_path / "x.pt")
    torch.save(weights, tmp_path / "x.safetensors")
    (tmp_path / "hub").mkdir()
    torch.save(weights, tmp_path / "hub" / "open_clip_pytorch_model.bin")
    for name in ("x.pt", "x.safetensors", "hub"):
        own = backbones.load_clip(str(tmp_path / name))
        assert own.fingerprint == emoji.fingerprint
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(InputError, match=r"pipe.pt is no file"):
        backbones.load_clip(str(tmp_path / "pipe.pt"))


@pytest.mark.parametrize("name", ["numpy.bin", "x.safetensors"])
def test_whatever_a_download_raises_is_one_sentence(name, monkeypatch, tmp_path):
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(InputError, match="holds no CLIP, but no weights"):
        backbones.load_clip(str(tmp_path / name))
    for error in (ConnectionResetError("reset"), TypeError("int() argument"),
                  RuntimeError("SHA256 checksum")):  # fmt: skip

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(backbones.clip.openai_clip, "load", fail)
        with pytest.raises(InputError, match="cannot download CLIP 'ViT-B/32'"):
            backbones.load_clip("ViT-B/32")


def test_weights_trained_with_gelu(emoji, tmp_path):
    torch.save(checkpoints()["plain"], tmp_path / "x.pt")
    with pytest.warns(UserWarning, match=r"QuickGELU; .*clip_backbone=.*x\.pt\+gelu"):
        backbones.load_clip(f"{tmp_path}/x.pt")
    gelu = backbones.load_clip("emoji+gelu")
    assert gelu.fingerprint != emoji.fingerprint
    x = torch.randn(1, 64)
    for backbone, activation in ((emoji, "sigmoid"), (gelu, "gelu")):
        act = backbone.model.visual.transformer.resblocks[0].mlp.gelu
        expected = (
            torch.nn.functional.gelu(x)
            if activation == "gelu"
            else (x * torch.sigmoid(1.702 * x))
        )
        torch.testing.assert_close(act(x), expected)
    with pytest.raises(InputError, match=r"\+gelu, not \+relu"):
        backbones.load_clip("emoji+relu")


@pytest.mark.parametrize(
    "name, says",
    [
        ("ViT-B-16", "Unknown CLIP backbone 'ViT-B-16'.*Did you mean 'ViT-B/16'?"),
        ("/nowhere/clip.pt", "no CLIP checkpoint at '/nowhere/clip.pt'"),
        ("ViT-L/14", "cannot download CLIP 'ViT-L/14'.*give a checkpoint's path"),
    ],
)
def test_backbones_that_cannot_be_had(name, says, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=says):
        backbones.load_clip(name)
