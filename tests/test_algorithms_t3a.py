"""T3A beside a plain statement of it, and as the example of domain adaptation."""

import json

import pytest
import torch
import torch.nn.functional as F

from domainbed import algorithms, hparams_registry
from domainbed.scripts import train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")


def build(name="T3A", **changed):
    hparams = hparams_registry.default_hparams(name, "Debug28") | changed
    return algorithms.get_algorithm_class(name)((2, 28, 28), 3, 2, hparams).eval()


def embeddings(algorithm, x):
    with torch.no_grad():
        z = algorithm.features(x)[:, -1]
        return F.normalize(z @ algorithm.backbone.image_projection, dim=1)


def pair(n):
    return torch.randn(n, 2, 28, 28), torch.arange(n) % 3


def test_without_unlabeled_images_it_is_zero_shot_clip():
    adapted, plain = build(), build("ZeroShotCLIP")
    x, y = pair(6)
    adapted.update([(x, y)])
    torch.testing.assert_close(adapted.predict(x), plain.predict(x))


@pytest.mark.parametrize("K", [1, 2, 100])
def test_a_class_is_the_mean_of_its_surest_supports(K):
    torch.manual_seed(0)
    adapted, plain = build(filter_K=K), build("ZeroShotCLIP")
    seen = [torch.randn(n, 2, 28, 28) for n in (7, 5, 6)]
    adapted.update([pair(2)], [seen[0], seen[1]])
    adapted.update([pair(2)], [seen[2], seen[0]])  # the first ones again
    texts = plain.class_embeddings()
    e = torch.cat([texts, embeddings(plain, torch.cat(seen))])
    p = (plain.backbone.scale * e @ texts.T).softmax(1)
    H = -(p * p.log()).sum(1)
    means = []
    for c in range(3):
        own = [i for i in range(len(e)) if p[i].argmax() == c]
        own.sort(key=lambda i: H[i].item())
        means.append(F.normalize(e[own[:K]].mean(0), dim=0))
    x, _ = pair(4)
    expected = plain.backbone.scale * embeddings(plain, x) @ torch.stack(means).T
    torch.testing.assert_close(adapted.predict(x), expected, rtol=1e-4, atol=1e-4)


def test_the_task_shows_it_images_and_no_labels(tmp_path):
    command = ["--dataset", "Debug28", "--algorithm", "T3A", "--steps", "3"]
    command += ["--task", "domain_adaptation", "--uda_holdout_fraction", "0.5"]
    command += ["--num_workers", "0", "--no_tensorboard", "--quiet"]
    train.main([*command, "--output_dir", str(tmp_path)])
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["supports"] > 2  # more than the texts of the classes
    assert "env0_uda_acc" in last
