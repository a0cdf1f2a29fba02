from importlib.util import find_spec

import pytest
import safetensors.torch
import torch

from domainbed import networks
from domainbed.algorithms import get_algorithm_class
from domainbed.hparams_registry import default_hparams
from domainbed.lib.errors import InputError

ERM = default_hparams("ERM", "Debug224")


@pytest.mark.parametrize(
    "shape, hparams, width",
    [
        ((10,), {}, 256),
        ((1, 28, 28), {}, 128),
        ((3, 64, 64), {"resnet18": True}, 512),
        ((5, 64, 64), {"resnet18": True}, 512),
        ((3, 64, 64), {}, 2048),
    ],
)
def test_featurizers_fit_their_inputs(shape, hparams, width):
    network = networks.Featurizer(shape, ERM | hparams).eval()
    with torch.no_grad():
        features = network(torch.randn(2, *shape))
    assert features.shape == (2, network.n_outputs) == (2, width)


needs_timm = pytest.mark.skipif(
    find_spec("timm") is None, reason="the extra timm is missing"
)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize(
    "which",
    [{"resnet18": True}, pytest.param({"backbone": "test_resnet"}, marks=needs_timm)],
)
def test_frozen_batch_norm_stays_in_eval_mode(which, freeze):
    hparams = ERM | which | {"freeze_bn": freeze}
    network = networks.Featurizer((3, 64, 64), hparams)  # as it is from the start
    mean = network.network.bn1.running_mean.clone()
    network(torch.randn(2, 3, 64, 64))
    assert torch.equal(network.network.bn1.running_mean, mean) == freeze


def test_frozen_batch_norm_holds_from_the_start():
    hparams = ERM | {"resnet18": True, "freeze_bn": True}
    erm = get_algorithm_class("ERM")((3, 64, 64), 2, 1, hparams | {"lr": 0.0})
    mean = erm.featurizer.network.bn1.running_mean.clone()
    erm.update([(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))])
    assert torch.equal(erm.featurizer.network.bn1.running_mean, mean)


def test_a_resnet_reads_weights_from_a_path(tmp_path):
    hparams = ERM | {"resnet18": True}
    first = networks.Featurizer((3, 64, 64), hparams).eval()
    torch.save(first.network.state_dict(), tmp_path / "resnet.pt")
    path = {"pretrained": str(tmp_path / "resnet.pt")}
    second = networks.Featurizer((3, 64, 64), hparams | path).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    "weights, says",
    [
        (None, "cannot read the weights in .*: .*No such file"),
        (b"no checkpoint", "cannot read the weights"),
        ({"a": torch.zeros(1)}, "are of another network: conv1.weight and"),
        ({"conv1.weight": torch.zeros(1)}, "do not fit: .*size mismatch for conv1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, says, tmp_path):
    path = tmp_path / "weights.pt"
    if isinstance(weights, bytes):
        path.write_bytes(weights)
    elif weights:
        torch.save(weights, path)
    hparams = ERM | {"resnet18": True, "pretrained": str(path)}
    with pytest.raises(InputError, match=says):
        networks.Featurizer((3, 64, 64), hparams)


def test_other_channels_repeat_the_rgb_weights():
    conv = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    weight = networks.other_channels(conv, 5).weight
    assert torch.equal(weight, conv.weight[:, [0, 1, 2, 0, 1]])


def test_a_nonlinear_classifier_halves_its_widths():
    layers = networks.Classifier(64, 5, is_nonlinear=True)
    sizes = [m.weight.shape for m in layers if hasattr(m, "weight")]
    assert sizes == [(32, 64), (16, 32), (5, 16)]
    assert networks.Classifier(64, 5).weight.shape == (5, 64)


def test_mlp_is_linear_layers_with_relu_after_dropout():
    hparams = {"mlp_width": 6, "mlp_depth": 4, "mlp_dropout": 0.5}
    mlp = networks.MLP(3, 2, hparams).eval()
    x = torch.randn(4, 3)
    expected = x
    for layer in (mlp.input, *mlp.hiddens):
        expected = layer(expected).relu()
    assert torch.equal(mlp(x), mlp.output(expected))
    assert len(mlp.hiddens) == 2
    assert not torch.equal(mlp.train()(x), mlp(x))


@pytest.mark.parametrize(
    "hparams", [{"vit": True}, {"dinov2": True}, {"vit_attn_tune": True}], ids=str
)
def test_half_of_a_vit_is_refused(hparams):
    with pytest.raises(InputError, match="vit and dinov2 are both needed"):
        networks.Featurizer((3, 64, 64), ERM | hparams)


def test_wide_resnet_by_hand():
    network = networks.Featurizer((3, 32, 32), ERM).eval()
    x = torch.randn(2, 3, 32, 32)
    n_parameters = sum(p.numel() for p in network.parameters())
    with torch.no_grad():
        out = network.conv1(x)
        for stage, stride in ((network.layer1, 1), (network.layer2, 2)):
            for block in stage:
                inner = block.conv2(
                    block.bn2(block.conv1(block.bn1(out).relu())).relu()
                )
                out = inner + block.shortcut(out)
            assert stage[0].conv2.stride == (stride, stride)
        out = network.bn1(network.layer3(out)).relu()
        assert out.shape == (2, 128, 8, 8)
        torch.testing.assert_close(network(x), out.mean((2, 3)))
    convolutions = 3 * 16 + 16 * 32 + 3 * 32 * 32 + 32 * 64 + 3 * 64 * 64
    convolutions = 9 * (convolutions + 64 * 128 + 3 * 128 * 128)
    shortcuts = 16 * 32 + 32 * 64 + 64 * 128
    biases = 16 + 5 * (32 + 64 + 128)
    norms = 2 * (16 + 3 * 32 + 32 + 3 * 64 + 64 + 3 * 128 + 128)
    assert n_parameters == convolutions + shortcuts + biases + norms
    assert network.bn1.momentum == 0.9


def timm_model(name, **hparams):
    import timm

    return timm.create_model(name, **hparams)


@needs_timm
class TestTimm:
    HPARAMS = ERM | {"backbone": "test_vit"}

    @pytest.mark.parametrize("form", ["plain.pt", "nested.pth", "hub.safetensors"])
    def test_features_are_the_models_pooled_ones(self, form, tmp_path):
        model = timm_model("test_vit").eval()  # with a head, as its makers save it
        weights, path = model.state_dict(), str(tmp_path / form)
        if form == "hub.safetensors":
            safetensors.torch.save_file(weights, path)
        else:
            torch.save({"model": weights} if form == "nested.pth" else weights, path)
        hparams = self.HPARAMS | {"pretrained": path}
        same = networks.Featurizer((3, 28, 28), hparams).eval()
        x = torch.randn(2, 3, *same.size)
        with torch.no_grad():
            pooled = model.forward_head(model.forward_features(x), pre_logits=True)
            assert torch.equal(same(x), pooled)

    # mobilenetv3 has a layer between its features and its head.
    @pytest.mark.parametrize(
        "name", ["test_vit", "test_resnet", "mobilenetv3_small_050"]
    )
    @pytest.mark.parametrize("shape", [(3, 28, 28), (2, 224, 224)])
    def test_features_have_the_width_it_says(self, name, shape):
        network = networks.Featurizer(shape, ERM | {"backbone": name}).eval()
        with torch.no_grad():
            features = network(torch.randn(2, *shape))
        assert features.shape == (2, network.n_outputs)

    def test_an_unknown_model_suggests_the_nearest(self):
        with pytest.raises(InputError, match=r"timm has no model 'vitb'"):
            networks.Featurizer((3, 28, 28), ERM | {"backbone": "vitb"})

    def test_a_failed_download_says_what_to_do(self, monkeypatch, tmp_path):
        # Online it tries again for most of a minute; the error is the same.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        wanted = {"backbone": "test_vit", "pretrained": True}
        with pytest.raises(InputError, match="set hyperparameter pretrained to false"):
            networks.Featurizer((3, 28, 28), ERM | wanted)

    @pytest.mark.parametrize(
        "name, width", [("DeiT", 85_800_192), ("HViT", 97_890_112)]
    )
    def test_presets_are_the_papers_models(self, name, width):
        preset = default_hparams(name, "PACS")["backbone"]
        with torch.device("meta"):
            model = timm_model(preset, num_classes=0)
        assert sum(p.numel() for p in model.parameters()) == width
        assert model.num_features == 768

    @pytest.mark.parametrize("attention_only", [False, True])
    def test_dinov2_joins_the_last_class_tokens_and_the_mean_patch(
        self, attention_only
    ):
        hparams = ERM | {"vit": True, "dinov2": True, "vit_attn_tune": attention_only}
        network = networks.Featurizer((3, 224, 224), hparams).eval()
        x, vit, tokens = torch.randn(2, 3, 224, 224), network.network, []
        for block in vit.blocks[-4:]:
            block.register_forward_hook(lambda *args: tokens.append(vit.norm(args[-1])))
        with torch.no_grad():
            features = network(x)
        expected = [t[:, 0] for t in tokens[-4:]] + [tokens[-1][:, 1:].mean(1)]
        assert torch.equal(features, torch.cat(expected, 1))
        assert features.shape == (2, network.n_outputs)
        training = {n for n, p in network.named_parameters() if p.requires_grad}
        of_attention = {n for n, _ in network.named_parameters() if "attn" in n}
        assert (training == of_attention) == attention_only

    def test_dinov2_takes_three_channels(self):
        with pytest.raises(InputError, match="images of 3 channels, not 2"):
            networks.Featurizer((2, 224, 224), ERM | {"vit": True, "dinov2": True})

    def test_dinov2_is_a_vit_b_14(self):
        preset = default_hparams("ERM", "PACS")["vit_model"]
        with torch.device("meta"):
            model = timm_model(preset, num_classes=0, dynamic_img_size=True)
        assert (model.num_features, len(model.blocks)) == (768, 12)
        assert model.patch_embed.patch_size == (14, 14)


@pytest.mark.parametrize(
    "which",
    [
        {"resnet18": True},  # holds a class, which can give no state
        pytest.param({"vit": True, "dinov2": True}, marks=needs_timm),
        pytest.param({"backbone": "test_vit"}, marks=needs_timm),  # holds enumerations
        pytest.param({"backbone": "test_resnet"}, marks=needs_timm),
    ],
)
def test_training_goes_on_in_a_new_process_whatever_the_network(which, tmp_path):
    def erm():
        return get_algorithm_class("ERM")((3, 224, 224), 2, 1, ERM | which)

    first, second = erm(), erm()
    first.update([(torch.randn(2, 3, 224, 224), torch.tensor([0, 1]))])
    torch.save(first.training_state(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_training_state(saved)
    for own, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(own, other)
    steps = [own.optimizer.state_dict()["state"][0]["step"] for own in (first, second)]
    assert steps == [1, 1]
