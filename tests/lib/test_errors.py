import subprocess
import sys

import pytest

from domainbed.lib.errors import InputError, UnknownNameError, exits_on_input_error


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("no such thing", "no such thing"),
        ("a reason\nof two lines", "a reason of two lines"),
        (
            "Caught InputError in DataLoader worker process 0.\nTraceback ...\n"
            "domainbed.lib.errors.InputError: cannot read a.png",
            "cannot read a.png",
        ),
    ],
)
def test_wrong_input_is_one_line_and_status_2(text, sentence, capsys):
    @exits_on_input_error
    def main(argv):
        raise InputError(text)

    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_place_that_is_another_kind_of_one_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()

    @exits_on_input_error
    def main(name):
        (tmp_path / name).mkdir()

    for name in ("file", "file/x", "x" * 300):
        with pytest.raises(SystemExit) as ended:
            main(name)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: cannot use {tmp_path / name}: ")


def test_other_errors_pass():
    @exits_on_input_error
    def main(argv):
        raise KeyError("a defect of ours")

    with pytest.raises(KeyError):
        main([])


def test_a_reader_that_goes_away_ends_a_script_without_a_word():
    code = (
        "from domainbed.lib.errors import exits_on_input_error\n"
        "exits_on_input_error(lambda: print('line\\n' * 100_000))()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as script:
        script.stdout.readline()
        script.stdout.close()
        assert script.stderr.read() == b""
    assert script.returncode == 141


def test_an_unknown_name_lists_the_known_and_suggests_the_nearest():
    error = UnknownNameError("dataset", "pacs", ["VLCS", "PACS"])
    assert str(error) == (
        "Unknown dataset 'pacs'; known: VLCS, PACS. Did you mean 'PACS'?"
    )
    assert str(UnknownNameError("dataset", "zzz", ["VLCS"])) == (
        "Unknown dataset 'zzz'; known: VLCS."
    )
