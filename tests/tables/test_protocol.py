"""Rows of other protocols are neither ranked nor told apart, and it is said why."""

import json
from pathlib import Path

import pandas as pd
import pytest

from domainbed.lib.query import Q
from domainbed.report import parts
from domainbed.tables import formats, frames, paper, protocol
from domainbed.tables.ties import ties

OTHER = "LinearERM"
ON_CLIP = {"clip_backbone": "ViT-B/16", "prompt": "a photo of a {name}"}
RESNET = {"resnet18": False, "resnet50_augmix": False}
DATA = {"fingerprint": "d1", "split": "s1", "backbone": ""}


def run(algorithm, hparams=ON_CLIP, facts=DATA, dataset="PACS", given=None, **args):
    """A run as `load_runs` has it, with what run.json says; None: there is none.

    `given` is the prompt that --hparams said.
    """
    if given:
        hparams = hparams | {"prompt": given}
        args["hparams"] = json.dumps({"prompt": given})
    args = {"trial_seed": 0, "test_envs": [0]} | args
    args |= {"dataset": dataset, "algorithm": algorithm}
    return Q([{"args": args, "hparams": hparams}]), facts


def rows(*runs):
    """`of_rows` of such runs."""
    made = {Path(str(i)): facts for i, (_, facts) in enumerate(runs)}
    loaded = [(folder, own) for folder, (own, _) in zip(made, runs, strict=True)]
    return protocol.of_rows(loaded, made)


def apart(*runs, names=("LFA", "MIRO", OTHER), over=("PACS",)):
    return protocol.apart(rows(*runs), [*over], [*names])


LFA, MIRO = run("LFA"), run("MIRO")


@pytest.mark.parametrize(
    "other, change, usual",
    [
        (run(OTHER, RESNET), "backbone ResNet-50", "backbone CLIP ViT-B/16"),
        (
            run(OTHER, RESNET | {"resnet18": True, "pretrained": False}),
            "backbone ResNet-18 without pre-training",
            "backbone CLIP ViT-B/16",
        ),
        (
            run(OTHER, given="a {name}"),
            "prompt a {name}",
            "prompt the method's own",
        ),
        (
            run(OTHER, steps=100),
            "steps 100, chosen from every 300th",
            "steps 5001, chosen from every 300th",
        ),
        (
            run(OTHER, checkpoint_freq=50),
            "steps 5001, chosen from every 50th",
            "steps 5001, chosen from every 300th",
        ),
        (run(OTHER, holdout_fraction=0.1), "held out 0.1", "held out 0.2"),
        (
            run(OTHER, uda_holdout_fraction=0.5),
            "held out 0.2, 0.5 seen unlabeled",
            "held out 0.2",
        ),
        (run(OTHER, facts=DATA | {"fingerprint": "d2"}), "data d2", "data d1"),
        (run(OTHER, facts=DATA | {"split": "s2"}), "split s2", "split s1"),
        (
            run(OTHER, ON_CLIP | {"as_published": True}),
            "selection the released code's",
            "selection the table's",
        ),
    ],
)
def test_each_column_sets_a_row_apart_and_is_named(other, change, usual):
    found = apart(LFA, MIRO, other)
    assert found.names == {OTHER}
    assert f"of another protocol: {OTHER} ({change}); what is ranked has {usual}." in (
        found.why
    )
    alike, changed = rows(LFA), rows(other)
    assert alike["PACS"]["LFA"].digest != changed["PACS"][OTHER].digest or (
        change == "split s2"  # which split it is tells nothing of a run alone
    )


@pytest.mark.parametrize(
    "other",
    [
        run(OTHER),
        run(OTHER, trial_seed=1, facts=DATA | {"split": "s2"}),
        run(OTHER, facts=None),  # not known is no difference
        run(OTHER, {}),
        run(OTHER, steps=5001, holdout_fraction=0.2),  # the defaults, given
        run("ZeroShotCLIPName", ON_CLIP | {"prompt": "{name}"}),
        run(OTHER, {"input": "features", "clip_backbone": "ViT-B/16"}),
        run(OTHER, ON_CLIP, hparams_seed=3, data_dir="elsewhere"),
    ],
)
def test_what_is_of_one_protocol_is_ranked_together(other):
    assert apart(LFA, MIRO, other) == protocol.TOGETHER
    (record,) = other[0]
    name = record["args"]["algorithm"]
    if other[1] and "prompt" in record["hparams"]:
        both = rows(LFA, other)["PACS"]
        assert both["LFA"].digest == both[name].digest


def test_weights_are_known_by_their_fingerprint_under_any_name():
    known = DATA | {"backbone": "f" * 16}
    path = ON_CLIP | {"clip_backbone": "/a/ViT-B-16.pt"}
    other = DATA | {"backbone": "e" * 16}
    names = ("LFA", "MIRO", "CLIPAdapter")
    same = [run("LFA", facts=known), run("MIRO", path, known)]
    assert apart(*same, names=names) == protocol.TOGETHER
    found = apart(*same, run("CLIPAdapter", facts=other), names=names)
    assert found.names == {"CLIPAdapter"}
    assert "CLIPAdapter (backbone CLIP ViT-B/16 eeeeeeee)" in found.why
    assert "has backbone CLIP ViT-B/16 ffffffff." in found.why


def test_a_prompt_that_is_given_is_the_same_for_whom_it_is_the_default():
    dot = "a photo of a {name}."  # DPLCLIP's own
    given, own = run("LFA", given=dot), run("DPLCLIP", ON_CLIP | {"prompt": dot})
    assert apart(given, own, names=("LFA", "DPLCLIP")) == protocol.TOGETHER
    assert apart(LFA, own, names=("LFA", "DPLCLIP")) == protocol.TOGETHER
    found = apart(MIRO, given, own, names=("LFA", "DPLCLIP", "MIRO"))
    assert "MIRO (prompt the method's own); what is ranked has prompt a ph" in found.why
    templates = run(OTHER, given=["a {name}", "one {name}"])
    assert "prompt ['a {name}', 'one {name}']" in apart(LFA, MIRO, templates).why


def test_the_protocol_of_most_is_ranked_and_the_first_of_equally_many():
    resnets = [run(name, RESNET) for name in ("ERM", "IRM")]
    names = ("ERM", "IRM", "LFA")
    assert apart(*resnets, LFA, names=names).names == {"LFA"}
    assert apart(*resnets, LFA, MIRO, names=("LFA", "MIRO", "ERM", "IRM")).names == {
        "ERM",
        "IRM",
    }


def test_a_row_of_mixed_runs_stands_apart():
    found = apart(LFA, MIRO, run(OTHER), run(OTHER, holdout_fraction=0.1))
    assert "LinearERM (held out 0.1 and 0.2)" in found.why


def test_over_several_datasets_it_is_said_where():
    both = [run(name, dataset=d) for name in ("LFA", "MIRO") for d in ("PACS", "VLCS")]
    over = ("PACS", "VLCS")
    pair = [run(OTHER, RESNET, dataset=d) for d in over]
    assert "LinearERM (backbone ResNet-50); what" in apart(*both, *pair, over=over).why
    pair = [run(OTHER), run(OTHER, holdout_fraction=0.1, dataset="VLCS")]
    why = apart(*both, *pair, over=over).why
    assert (
        "LinearERM (held out 0.1 on VLCS); what is ranked has held out 0.2 on VLCS."
        in why
    )
    assert apart(*both, run(OTHER), over=over) == protocol.TOGETHER


def table(found, accs):
    """A wide form of {row: accuracies of PACS's four domains} and its ties."""
    frame = pd.DataFrame(
        [
            ("PACS", name, env, "ACPS"[env], trial, acc)
            for name, own in accs.items()
            for env, acc in enumerate(own)
            for trial in range(2)
        ],
        columns=[
            *("dataset", "algorithm", "test_env", "environment", "trial_seed", "acc")
        ],
    )
    long = pd.concat([frames.summary(frame), frames.averages(frame)])
    long = long.assign(source=frames.MEASURED, protocol="")
    return frames.wide_forms(long, [*accs])["PACS"], ties(frame, found)


ACCS = {"LFA": [0.5] * 4, "MIRO": [0.6] * 4, "CLIPAdapter": [0.4] * 4, "ERM": [0.9] * 4}


def test_no_table_ranks_a_row_of_another_protocol_or_gives_it_letters():
    erm = run("ERM", RESNET)
    found = apart(LFA, MIRO, run("CLIPAdapter"), erm, names=ACCS)
    form, own = table(found, ACCS)
    alone = {name: acc for name, acc in ACCS.items() if name != "ERM"}
    assert own.letters == table(protocol.TOGETHER, alone)[1].letters
    assert own.note.startswith(table(protocol.TOGETHER, alone)[1].note)
    assert own.note.endswith(found.why)
    latex = paper.table("PACS", formats.WideTable(form, own), "x")
    assert latex.count(r"\textbf{60.0 ") == 5  # four domains and their average
    assert latex.count(r"\underline{50.0 ") == 5
    assert r"ERM$^{\dag{}}$ & 90.0 $\pm$" in latex
    assert "backbone ResNet-50); what is ranked has backbone CLIP ViT-B/16." in latex
    cells = formats.cells(formats.WideTable(form, own)).set_index("Algorithm")
    assert cells.index.tolist() == ["LFA", "MIRO", "CLIPAdapter", "ERM †"]
    assert cells.at["ERM †", "Alike"] == ""
    assert found.why.split(":")[0] in formats.markdown(
        {"PACS": formats.WideTable(form, own)}
    )
    mean = form["mean"].droplevel(["source", "protocol"])
    ranks = {
        name: [cell.rank for cell in own]
        for name, own in parts.summary(mean, mean, found).rows
    }
    assert ranks["MIRO"] == [1] * 5
    assert all(rank != rank for rank in ranks["ERM †"])  # NaN


def test_rows_that_chose_on_test_data_are_marked_even_alone():
    published = ON_CLIP | {"as_published": True}
    found = apart(run("GDA", published), run("TipAdapter", published), names=["GDA"])
    assert found == (frozenset(), {"GDA": " *"}, protocol.REMARK)
    found = apart(LFA, MIRO, run("GDA", published), names=["LFA", "MIRO", "GDA"])
    assert found.marks == {"GDA": " *"}
    assert found.names == {"GDA"}
    form, own = table(
        found._replace(names=frozenset({"ERM"}), marks={"ERM": " *"}), ACCS
    )
    assert r"ERM$^{{*}}$ &" in paper.table("PACS", formats.WideTable(form, own), "x")
