"""What there is, as a newcomer asks for it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import domainbed
from domainbed import __main__, algorithms, datasets, hparams_registry
from domainbed.scripts import list as listing

SCRIPTS = Path(domainbed.__file__).parent / "scripts"


def printed(capsys, *words):
    listing.main([*words])
    return capsys.readouterr().out


def blocks(text):
    """{title: its lines} of lines that are indented under titles."""
    found = re.split(r"^(?=\S)", text, flags=re.M)
    return {b.splitlines()[0]: b for b in found if b}


def test_the_package_lists_its_commands():
    ended = subprocess.run(
        [sys.executable, "-m", "domainbed"], capture_output=True, text=True
    )
    for path in SCRIPTS.glob("[!_]*.py"):
        assert f"python -m domainbed.scripts.{path.stem} " in ended.stdout
    assert __main__.commands()["train"].startswith("Train and evaluate one algorithm")


@pytest.mark.parametrize("command", ["domainbed", "domainbed.scripts.list datasets"])
def test_a_reader_that_goes_away_is_no_error(command):
    """As `head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", *command.split()]
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def test_an_algorithm_says_what_it_is(capsys):
    found = blocks(printed(capsys, "algorithms", "LFA", "ZSCLIP", "QLoRALFA"))
    assert [*found] == ["LFA", "ZeroShotCLIP", "QLoRALFA"]
    assert "https://github.com/MLAI-Yonsei/LFA" in found["LFA"]
    assert "images, stored class tokens" in found["LFA"]
    assert "trains  131,072 parameters" in found["LFA"]  # 8 of 128 x 128
    assert re.search(r"trains +nothing", found["ZeroShotCLIP"])
    assert "pip install domainbed-lfa[qlora]" in found["QLoRALFA"]
    assert re.search(r"after +QLoRACLIP", found["QLoRALFA"])


def test_every_algorithm_is_described():
    for name in algorithms.ALGORITHMS:
        cls = algorithms.get_algorithm_class(name)
        assert listing.sentence(cls), name
        # A paper without an address is cited by its year.
        cited = listing.papers(cls) or re.search(r"\b(19|20)\d\d\b", cls.__doc__)
        assert cited, name


@pytest.mark.parametrize(
    "name, paper",
    [
        ("SHERL", "https://arxiv.org/abs/2407.07523"),  # two lines of its module's
        ("VQT", "https://arxiv.org/abs/2212.03220"),
        ("ARC_att", "https://arxiv.org/abs/2310.06234"),  # by the paper's name
        ("LPPlusPlus", "https://arxiv.org/abs/2404.02285"),  # and as LP++
        ("T3A", "https://openreview.net/forum?id=e_yvNqkJKAW"),  # before its base's
        ("LinearERM", "https://arxiv.org/abs/2103.00020"),  # its base's, not MIRO's
        ("TipAdapterF", "https://arxiv.org/abs/2207.09519"),  # without the full stop
        ("LFAonMaPLe", "https://github.com/MLAI-Yonsei/LFA"),
    ],
)
def test_an_algorithm_cites_its_own_paper(name, paper):
    assert listing.papers(algorithms.get_algorithm_class(name)) == paper


def test_datasets_say_whether_they_are_there(capsys, pacs):
    text = printed(capsys, "datasets", "--data_dir", str(pacs))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert [*lines] == datasets.DATASETS
    assert " there     art_painting, cartoon" in lines["PACS"].replace(
        "  A", "  a"
    ) or (" there " in lines["PACS"])
    assert " not there " in lines["VLCS"]


def test_hparams_are_defaults_and_draws(capsys):
    text = printed(capsys, "hparams", "LFA", "--dataset", "PACS")
    drawn = hparams_registry.random_hparams("LFA", "PACS", 1)["lr"]
    (line,) = (own for own in text.splitlines() if own.split()[0] == "lr")
    assert line.split()[1] == "0.001"
    assert f"drawn: {drawn:.3g}, " in line
    (fixed,) = (own for own in text.splitlines() if own.split()[0] == "weight_decay")
    assert "drawn" not in fixed


@pytest.mark.parametrize(
    "words, says",
    [
        (["algorithms", "LFO"], "Did you mean 'LFA'?"),
        (["hparams"], "list hparams needs an algorithm: list hparams LFA."),
        (["datasets", "PACT"], "Did you mean 'PACS'?"),
    ],
)
def test_what_there_is_not_is_named(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        listing.main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
