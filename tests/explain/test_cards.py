"""explain: cards say what the models say, disagreements, and what odd input is told."""

import re
import shutil
import zipfile
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed import datasets, hparams_registry, training
from domainbed.algorithms import get_algorithm_class
from domainbed.backbones import clip, clip_transform, load_clip
from domainbed.explain import cards
from domainbed.scripts import train
from domainbed.scripts.explain import main

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
from domainbed.explain import figures
from domainbed.report import svg

HOSTILE = "<script>alert('$x_1$')&<"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three domains of a few emoji in three classes, one of them with a hostile name;
    `run_of` puts runs beside them.
    """
    root = tmp_path_factory.mktemp("explain")
    with zipfile.ZipFile(datasets.EmojiDG.ARCHIVE) as archive:
        files = sorted(archive.namelist())
        for source, domain in ("noto", "a"), ("openmoji", "b<b>"), ("twemoji", "c"):
            for kind, name in ("meal", HOSTILE), ("mammal", "dog"), ("tool", "house"):
                to = root / "data" / domain / name
                to.mkdir(parents=True)
                few = [f for f in files if f.startswith(f"{source}/{kind}/")][:4]
                for i, file in enumerate(few):
                    with archive.open(file) as image:
                        Image.open(image).save(to / f"{i}.png")
    return root


def run_of(folder, name, *flags, algorithm="LFA"):
    """That run's folder; trained the first time."""
    output = folder / name
    if not output.exists():
        of = ["--dataset", f"ImageFolder:{folder / 'data'}", "--algorithm", algorithm]
        to = ["--data_dir", str(folder), "--output_dir", str(output), *flags]
        hparams = ["--hparams", "clip_backbone=emoji", "lr=0.05", "batch_size=6"]
        train.main([*of, *to, *hparams, "--test_envs", "1", "--steps", "3"])
    return output


@pytest.fixture(scope="module")
def lfa(folder):
    return run_of(folder, "lfa")


@pytest.fixture(scope="module")
def probe(folder):
    return run_of(folder, "probe", algorithm="LinearProbeCLIP")


def columns_of(run, versus=None):
    return cards.make_columns(*cards.load_models(run, versus, None))


def refusal(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip()


def test_lfa_with_one_layer_is_its_last_layer_alone():
    hparams = hparams_registry.default_hparams("LFA", "EmojiDG")
    names = {"class_names": ["dog", "house"]}
    lfa = get_algorithm_class("LFA")((3, 48, 48), 2, 3, hparams | names)
    for parameter in lfa.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    z = torch.randn(5, 8, 128)
    with torch.no_grad():
        alone = lfa.last_layer_logits(z)
        assert not torch.allclose(alone, lfa.logits(z), atol=0.1)
        lfa.text_features = lfa.text_features[:, -1:]
        torch.testing.assert_close(alone, lfa.logits(z[:, -1:]))
        torch.testing.assert_close(alone, lfa.last_layer_logits(z))


def by_hand(run, path):
    """Softmax of what the run's algorithm predicts of one picture, (C,)."""
    x = clip_transform("emoji")(Image.open(path).convert("RGB"))[None]
    with torch.no_grad():
        return training.load_algorithm(run).predict(x)[0].softmax(0).numpy()


def test_answers_to_a_file_are_the_runs_own_predictions(folder, lfa, probe):
    path = folder / "data" / "c" / "dog" / "2.png"
    card = cards.card_of_file(path, columns_of(lfa, probe))
    assert (card.name, card.truth) == ("2.png", None)
    titles, answers = zip(*card.answers, strict=True)
    assert titles == ("LinearProbeCLIP", "LFA, last layer alone", "LFA, all layers")
    for probabilities in answers:
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(answers[0], by_hand(probe, path), atol=1e-5)
    np.testing.assert_allclose(answers[2], by_hand(lfa, path), atol=1e-5)
    assert card.predicted == by_hand(lfa, path).argmax()
    algorithm = training.load_algorithm(lfa)
    x = clip_transform("emoji")(Image.open(path).convert("RGB"))[None]
    with torch.no_grad():
        alone = algorithm.last_layer_logits(algorithm.features(x))[0].softmax(0)
    np.testing.assert_allclose(answers[1], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["VQT", "UniPT"])
def test_the_layers_that_a_method_weighs_are_drawn_and_named(folder, name, capsys):
    run = run_of(folder, name, algorithm=name)
    path = folder / "data" / "c" / "dog" / "2.png"
    card = cards.card_of_file(path, columns_of(run))
    titles, _ = zip(*card.answers, strict=True)
    assert titles == ("ZeroShotCLIP", name)
    shares = card.attention["states"]
    assert shares.shape == (9,)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert [*figures.attention_series(card)] == ["states"]
    main(["--run", str(run), "--image", str(path)])
    most = int(shares.argmax())
    words = (
        f"{name} uses these image layers most: {most} ({100 * shares[most]:.0f} %), "
    )
    assert words in capsys.readouterr().out
    assert words in (run / "explain" / "explain.html").read_text()


def test_without_another_run_it_is_compared_with_clip_itself(folder, probe):
    path = folder / "data" / "c" / "dog" / "2.png"
    card = cards.card_of_file(path, columns_of(probe))
    titles, answers = zip(*card.answers, strict=True)
    assert titles == ("ZeroShotCLIP", "LinearProbeCLIP")
    assert card.attention == {}
    prompts = [f"a photo of a {name}" for name in (HOSTILE, "dog", "house")]
    prompts[0] = prompts[0].replace("_", " ")
    x = clip_transform("emoji")(Image.open(path).convert("RGB"))[None]
    with torch.no_grad():
        logits, _ = load_clip("emoji").model(x, clip.tokenize(prompts))
    np.testing.assert_allclose(answers[0], logits[0].softmax(0), atol=1e-5)


@pytest.mark.parametrize("flags", [(), ("--no_feature_store",)])
def test_a_test_image_is_taken_as_the_run_evaluated_it(folder, flags):
    run = run_of(folder, "run" + "".join(flags), *flags)
    columns = columns_of(run)
    card = cards.card_of_item(1, 5, columns)
    assert (card.name, card.truth) == ("b<b>/1.png", 1)
    path = folder / "data" / "b<b>" / "dog" / "1.png"
    assert np.array_equal(card.picture, Image.open(path).convert("RGB"))
    x = columns[-1].model.item(1, 5)
    assert x.ndim == (4 if flags else 3)
    exact = 1e-5 if flags else 1e-2  # features are stored as float16
    np.testing.assert_allclose(card.answers[-1][1], by_hand(run, path), atol=exact)


def test_the_attention_drawn_is_layer_attention(lfa):
    columns = columns_of(lfa)
    model = columns[-1].model
    with torch.no_grad():
        weights = model.algorithm.layer_attention(model.item(1, 0))
    predicted = cards.card_of_item(1, 0, columns).predicted
    for truth in (predicted, (predicted + 1) % 3):
        card = cards.card_of_item(1, 0, columns)._replace(truth=truth)
        classes = list(dict.fromkeys([predicted, truth]))
        expected = {
            "image": weights["image"],
            "self": weights["self"][classes],
            "cross": weights["cross"][0, classes],
        }
        drawn = {}
        for key in expected:
            ax = svg.axes(svg.canvas(100), 0, 0, 90, 90)
            figures.draw_attention(ax, card, key)
            drawn[key] = [bar.get_height() for bar in ax.patches]
            n = expected[key].shape[1]
            assert [*ax.get_xticks()] == [*range(1, n + 1)]
        for key, own in expected.items():
            np.testing.assert_allclose(drawn[key], own.flatten(), atol=1e-6)


def chance(seed):
    """Logits that are a random function of x."""

    def logits(x):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(x[0].numel(), 3, generator=generator)
        return 3 * torch.sin(9 * x.flatten(1) @ weights)

    return logits


def test_disagreements_are_those_that_a_plain_loop_finds(lfa):
    model = columns_of(lfa)[-1].model
    first, second = (cards.Column(f"{i}", model, chance(i)) for i in (1, 2))
    found, right = [], [0, 0]
    for i, (x, label) in enumerate(model.items(1)):
        a, b = (c.logits(x[None])[0].softmax(0) for c in (first, second))
        if a.argmax() != b.argmax():
            found.append((min(a.max(), b.max()).item(), i))
            right[0] += int(a.argmax() == label)
            right[1] += int(b.argmax() == label)
    assert 3 < len(found) < 12
    answers = cards.compare(first, second)
    rows = cards.most_confident(answers, 100)
    assert [*rows["index"]] == [i for _, i in sorted(found, reverse=True)]
    assert {*rows["env"]} == {1}
    assert rows.head(2).equals(cards.most_confident(answers, 2))
    assert cards.summary(answers, "A", "B").endswith(
        f"differ on {len(found)} of 12 test images; of these the first is right on "
        f"{right[0]}, the second on {right[1]}, neither on {len(found) - sum(right)}."
    )


def test_equally_confident_disagreements_keep_their_order(lfa):
    model = columns_of(lfa)[-1].model
    one, other = (
        cards.Column("", model, lambda x, row=row: torch.eye(3)[row].repeat(len(x), 1))
        for row in (0, 1)
    )
    rows = cards.most_confident(cards.compare(one, other), 100)
    assert [*rows["index"]] == [*range(12)]
    assert cards.most_confident(cards.compare(one, one), 9).empty


def test_where_the_batch_matters_an_image_is_asked_alone(folder):
    run = run_of(folder, "dpl", algorithm="DPLCLIP")
    columns = columns_of(run)
    answers = cards.compare(*columns)
    for row in answers.itertuples():
        card = cards.card_of_item(row.env, row.index, columns)
        assert card.predicted == row.second
        sure = min(probabilities.max() for _, probabilities in card.answers)
        assert sure == pytest.approx(row.confidence, abs=1e-6)


@pytest.fixture(scope="module")
def card_files(folder, lfa, probe):
    """The folder that `explain` writes for every disagreement, or for two files."""
    output = folder / "cards"
    files = [folder / "data" / "b<b>" / HOSTILE / f"{i}.png" for i in (0, 1)]
    files[1] = shutil.copy(
        files[1], folder / "<img src=x onerror=alert(1)> ü\n\udcff.png"
    )
    argv = ["--run", lfa, "--versus", probe, "--output_dir", output, "--image", *files]
    main([str(word) for word in argv])
    return output


def test_hostile_names_are_escaped_and_make_safe_files(card_files):
    names = sorted(path.name for path in card_files.iterdir())
    assert names == [
        "001_0.png",
        "002_img_src_x_onerror_alert_1.png",
        "explain.html",
    ]
    html = (card_files / "explain.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt; ü" in html


class Tags(HTMLParser):
    """The tags of a page, each with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_needs_nothing_but_itself(card_files):
    html = (card_files / "explain.html").read_text(encoding="utf-8")
    tags = Tags(html).found
    assert {tag for tag, attributes in tags if "src" in attributes} == {"img"}
    for _, attributes in tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "default-src 'none'" in html
    counts = Counter(tag for tag, _ in tags)
    assert (counts["article"], counts["img"], counts["svg"]) == (2, 2, 2 * 6)
    assert counts["script"] == counts["link"] == 0


def test_png_cards_are_pictures_of_one_width(card_files):
    for path in sorted(card_files.glob("*.png")):
        with Image.open(path) as picture:
            assert picture.width == 2 * svg.WIDTH
        assert path.stat().st_size < 200_000


def texts(card):
    return [
        text.get_text()
        for text in figures.draw_card(card).findobj(
            lambda artist: hasattr(artist, "get_text")
        )
        if text.get_text()
    ]


def test_a_card_tells_what_is_true_and_what_is_wrong():
    names = [f"class_{i}" for i in range(8)]
    sure, unsure = np.eye(8)[0], np.array([3, 9, 8, 7, 6, 5, 1, 1]) / 40
    picture = Image.new("RGB", (900, 300))
    answers = [("one", sure), ("other", unsure)]
    card = cards.Card("a/b.png", picture, 0, names, answers, {})
    shown = texts(card)
    assert {"✓ one", "✗ other", "class_0  (true)", "100.0 %"} <= {*shown}
    assert {"true: class_0", "wrong: class_1"} <= {*shown}
    assert "true class: rank 6 of 8, 7.5 %" in shown
    unknown = texts(card._replace(truth=None))
    assert {"one", "other", "answer: class_1"} <= {*unknown}
    assert not [text for text in unknown if "true" in text or "wrong" in text]


@pytest.fixture(scope="module")
def contrary(lfa):
    """A run that finds most probable what `lfa` finds least so."""
    folder = lfa.with_name("contrary")
    shutil.copytree(lfa, folder)
    saved = torch.load(lfa / "model.pkl", weights_only=True)
    saved["model_dict"]["image_v.weight"] *= -1
    torch.save(saved, folder / "model.pkl")
    return folder


def test_runs_are_shown_where_they_disagree(lfa, contrary, capsys):
    main(["--run", str(lfa), "--versus", str(contrary), "--disagreements", "10"])
    out = capsys.readouterr().out
    assert out.startswith("LFA, the other run (")
    assert " % right) and LFA, all layers (" in out
    assert "differ on 12 of 12 test images; of these" in out
    assert "wrote 10 cards" in out
    names = sorted(path.name for path in (lfa / "explain").glob("*.png"))
    assert [int(name[:3]) for name in names] == [*range(1, 11)]
    assert all(re.fullmatch(r"\d{3}_b_b_\d.png", name) for name in names)


def test_without_another_run_lfa_is_compared_with_its_last_layer(lfa, tmp_path, capsys):
    argv = ["--run", lfa, "--disagreements", 12, "--output_dir", tmp_path / "out"]
    main([str(word) for word in argv])
    out = capsys.readouterr().out
    columns = columns_of(lfa)
    answers = cards.compare(*columns[1:])
    assert out.startswith(cards.summary(answers, *(c.title for c in columns[1:])))
    assert columns[1].title == "LFA, last layer alone"
    n = (answers["first"] != answers["second"]).sum()
    assert len([*(tmp_path / "out").glob("*.png")]) == n


def test_a_diverged_run_says_so(lfa, tmp_path, capsys):
    saved = torch.load(lfa / "model.pkl", weights_only=True)
    saved["model_dict"]["image_k.weight"] *= float("nan")
    torch.save(saved, tmp_path / "model.pkl")
    error = refusal(capsys, "--run", tmp_path, "--disagreements", 1)
    assert error == "error: LFA, all layers answers NaN: its training diverged."
    assert not (tmp_path / "explain").exists()


def test_file_names_are_short_and_plain():
    card = cards.Card("图/" + "x" * 300 + ".png", None, None, [], [], {})
    assert figures.file_name(7, card) == "007_" + "x" * 76 + ".png"
    assert figures.file_name(7, card._replace(name="图.png")) == "007.png"


def test_two_runs_that_agree_leave_nothing(lfa, tmp_path, capsys):
    argv = ["--run", lfa, "--versus", lfa, "--output_dir", tmp_path / "out"]
    main([str(word) for word in [*argv, "--disagreements", 3]])
    assert "differ on 0 of 12 test images" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_data_that_moved_are_named(folder, lfa, tmp_path, capsys):
    moved = tmp_path / "lfa"
    shutil.copytree(lfa, moved)
    saved = torch.load(moved / "model.pkl", weights_only=True)
    saved["args"]["data_dir"] = str(tmp_path / "gone")
    saved["args"]["dataset"] = "PACS"
    saved["args"]["feature_dir"] = str(moved / "out.txt" / "gone")
    torch.save(saved, moved / "model.pkl")
    argv = ["--run", moved, "--disagreements", "1"]
    assert "give the folder that holds PACS/ as --data_dir" in refusal(capsys, *argv)
    places = {"art_painting": "a", "cartoon": "b<b>", "photo": "c", "sketch": "a"}
    for name, environment in places.items():
        shutil.copytree(folder / "data" / environment, tmp_path / "PACS" / name)
    main([str(word) for word in [*argv, "--data_dir", tmp_path]])
    for name in places:
        picture = next((tmp_path / "PACS" / name).rglob("*.png"))
        (tmp_path / "PACS" / name / "cat").mkdir()
        shutil.copy(picture, tmp_path / "PACS" / name / "cat")
    error = refusal(capsys, *argv, "--data_dir", tmp_path)
    assert "has other classes than those that LFA was trained on" in error


def test_bad_input_ends_in_one_sentence(folder, lfa, contrary, tmp_path, capsys):
    def says(words, *argv):
        error = refusal(capsys, *argv, "--output_dir", tmp_path / "out")
        assert words in error
        assert error.count("\n") == 0
        assert not (tmp_path / "out").exists()

    one = ["--disagreements", 1]
    says("--disagreements is 0; it must be at least 1.", "--run", lfa, one[0], 0)
    says("is no folder", "--run", tmp_path / "none", *one)
    says("it is no run's folder", "--run", tmp_path, *one)
    no_model = run_of(folder, "no_model", "--skip_model_save")
    says("it was trained with --skip_model_save", "--run", no_model, *one)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "out.txt").touch()
    says("its state is: waiting", "--run", unfinished, *one)
    (unfinished / "model.pkl").write_bytes(b"nothing")
    says("cannot use its model.pkl", "--run", lfa, "--versus", unfinished, *one)
    says("cannot read the image", "--run", lfa, "--image", folder / "lfa" / "out.txt")
    says("cannot read the image", "--run", lfa, "--image", tmp_path / "none.png")
    two = ["--run", lfa, "--versus", contrary]
    error = refusal(capsys, *two, *one, "--output_dir", unfinished / "out.txt")
    assert f"cannot write to {unfinished / 'out.txt'}" in error


def changed(run, folder, **args):
    """A copy of the run that says it had other arguments."""
    shutil.copytree(run, folder)
    saved = torch.load(run / "model.pkl", weights_only=True)
    torch.save(saved | {"args": saved["args"] | args}, folder / "model.pkl")
    return folder


def test_runs_that_do_not_compare_are_refused(lfa, probe, tmp_path, capsys):
    def says(words, *argv):
        assert words in refusal(capsys, *argv, "--disagreements", 1)

    other = changed(probe, tmp_path / "other", dataset="PACS")
    says("is a run with dataset PACS", "--run", lfa, "--versus", other)
    seen = changed(probe, tmp_path / "seen", test_envs=[0])
    says("is a run with test_envs [0]", "--run", lfa, "--versus", seen)
    erm = changed(probe, tmp_path / "erm", algorithm="ERM")
    says("is a run of ERM; cards are for the methods on CLIP", "--run", erm)
    digits = changed(lfa, tmp_path / "digits", dataset="RotatedMNIST")
    says("whose items are no image files", "--run", digits)
