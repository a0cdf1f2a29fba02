"""The hparam `input`: any algorithm on what a frozen CLIP makes of the images."""

import json

import pytest
import torch

from domainbed import training
from domainbed.lib.errors import InputError
from domainbed.runs import provenance
from domainbed.scripts import train


def run_of(pacs, tmp_path, *flags, algorithm="ERM", what="features"):
    hparams = json.dumps({"input": what, "clip_backbone": "emoji"})
    command = ["--dataset", "PACS", "--data_dir", str(pacs), "--algorithm", algorithm]
    command += ["--hparams", hparams, "--output_dir", str(tmp_path), *flags]
    return training.Run(train.parse_args(command))


@pytest.mark.parametrize("what", ["features", "layers"])
def test_vectors_are_the_frozen_towers(pacs, tmp_path, what):
    run = run_of(pacs, tmp_path, what=what)
    images = torch.stack([run.dataset.unaugmented(1)[i][0] for i in (3, 0)])
    with torch.no_grad():
        z = run.backbone.encode_image_layers(images)
    plain = (
        z.flatten(1) if what == "layers" else z[:, -1] @ run.backbone.image_projection
    )
    x, y = run.stored[1].gather([3, 0])
    torch.testing.assert_close(x, plain, rtol=1e-2, atol=1e-2)  # half precision
    assert y.tolist() == [run.dataset[1].targets[i] for i in (3, 0)]
    assert run.input_shape == x.shape[1:]
    part = run.stored[1].subset([4, 3])
    torch.testing.assert_close(part[1][0], x[0])


def test_erm_trains_on_vectors_and_loads_again(pacs, tmp_path):
    run = run_of(pacs, tmp_path, "--steps", "3", "--test_envs", "1")
    run.train()
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    loaded = training.load_algorithm(tmp_path)
    x, _ = run.stored[0].gather(range(4))
    torch.testing.assert_close(loaded.predict(x), run.algorithm.eval().predict(x))


def test_batches_are_those_of_the_images(pacs, tmp_path):
    vectors = run_of(pacs, tmp_path).loaders("train")[0]
    hparams = ["--hparams", '{"clip_backbone": "emoji"}', "--no_feature_store"]
    images = run_of(pacs, tmp_path, *hparams, algorithm="LFA").loaders("train")[0]
    (_, y), (_, expected) = next(iter(vectors)), next(iter(images))
    assert y.tolist() == expected.tolist()
    assert vectors.draws.indices(7).tolist() == images.draws.indices(7).tolist()


@pytest.mark.parametrize(
    "flags, options, sentence",
    [
        ([], {"what": "feature"}, "input: 'feature'.*Did you mean 'features'"),
        (
            ["--no_feature_store"],
            {},
            "needs a dataset of image folders and the feature",
        ),
        ([], {"algorithm": "DeiT"}, "takes images, not vectors"),
        ([], {"algorithm": "ARM"}, "ARM takes images, not vectors of"),
        ([], {"algorithm": "LFA"}, "LFA has no hyperparameter 'input'"),
    ],
)
def test_what_cannot_be_is_said(pacs, tmp_path, flags, options, sentence):
    with pytest.raises(InputError, match=sentence):
        assert run_of(pacs, tmp_path, *flags, **options).stored


def test_the_fingerprint_is_of_the_files_names(pacs, tmp_path):
    before = provenance.dataset_fingerprint(run_of(pacs, tmp_path).dataset)
    assert provenance.dataset_fingerprint(run_of(pacs, tmp_path).dataset) == before
    image = next((pacs / "PACS" / "photo" / "dog").iterdir())
    image.rename(image.with_name("renamed.png"))
    assert provenance.dataset_fingerprint(run_of(pacs, tmp_path).dataset) != before
