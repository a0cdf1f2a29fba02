"""The help of every script opens with an example, and with what the script does."""

import argparse
import importlib
import pkgutil
import shlex

import pytest

from domainbed import __main__, scripts

SCRIPTS = [module.name for module in pkgutil.iter_modules(scripts.__path__)]


class Parsed(Exception):
    """What ends a script whose arguments are right before it begins."""


def flags_of(parser):
    """Its arguments, and those of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from flags_of(command)
        else:
            yield action


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_path_may_begin_with_what_the_shell_leaves_alone(name, monkeypatch):
    paths = {"input_dir", "output_dir", "data_dir", "feature_dir", "output", "board"}
    paths |= {"baseline", "data", "to", "run", "versus", "image"}
    parsers = []

    def keep_and_end(parser, words):
        parsers.append(parser)
        raise Parsed

    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep_and_end)
    with pytest.raises(Parsed):
        importlib.import_module(f"domainbed.scripts.{name}").main([])
    for flag in flags_of(parsers[0]):
        if flag.dest in paths:
            assert str(flag.type("~/place")) == "/home/me/place", flag.dest


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_opens_with_an_example_that_parses(name, capsys, monkeypatch):
    main = importlib.import_module(f"domainbed.scripts.{name}").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    example, what, *_ = capsys.readouterr().out.split("\n\n")
    start = f"usage: python -m domainbed.scripts.{name} "
    assert example.startswith(start)
    assert all(len(line) <= 88 for line in example.splitlines())
    assert " ".join(what.split()).startswith(__main__.commands()[name])
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_end(parser, words):
        parse_args(parser, words)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    with pytest.raises(Parsed):
        main(shlex.split(example.removeprefix(start).replace("\\\n", " ")))
