"""What a run answered on every image that it was tested on: predictions.npz.

Kept are the last evaluation and the one that training-domain validation chooses.
Leave-one-domain-out chooses by the records of other runs: what it chooses is there only
where it is one of the two. Of each tested environment i the file holds, an item to a
place in the environment,

    env{i}_part                 number of the split in `parts`, from 1 on; 0: not tested
    env{i}_label
    env{i}_answer_{step}        the number of classes: no answer, a NaN among the logits
    env{i}_answer_logp_{step}   log-probability of the answer, float16
    env{i}_label_logp_{step}    and of the label

beside `data` (the dataset's fingerprint), `classes` (their number), `names` (theirs)
and `parts`.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domainbed.lib import misc
from domainbed.lib.errors import InputError

NAME = "predictions.npz"
LEAST = -6e4  # float16 ends there


class Answers(NamedTuple):
    """Of the n items of one split, each (n,): what they are and what was answered."""

    env: int
    part: str
    place: np.ndarray
    label: np.ndarray
    answer: np.ndarray
    answer_logp: np.ndarray
    label_logp: np.ndarray


def keep(
    file: Path,
    answers: list[Answers],
    sizes: list[int],
    facts: dict[str, Any],
    step: int,
    chosen: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write that step's answers beside those of the chosen step, which the file has.

    `sizes` are the environments' numbers of items, `facts` are data, classes and names;
    `check` is as of `misc.write_whole`.
    """
    arrays = {}
    if chosen != step:  # else it may have this very step's, of a run that was killed
        ends = f"_{chosen}"
        arrays = {name: a for name, a in load(file).items() if name.endswith(ends)}
    parts = [*dict.fromkeys(own.part for own in answers)]
    integer = np.min_scalar_type(facts["classes"])
    for env in {own.env for own in answers}:
        part, label, answer = (
            np.zeros(sizes[env], t) for t in ("u1", integer, integer)
        )
        logps = np.zeros((2, sizes[env]), np.float16)
        for own in answers:
            if own.env == env:
                part[own.place] = parts.index(own.part) + 1
                label[own.place], answer[own.place] = own.label, own.answer
                both = [own.answer_logp, own.label_logp]
                logps[:, own.place] = np.maximum(both, LEAST)
        arrays |= {
            f"env{env}_part": part,
            f"env{env}_label": label,
            f"env{env}_answer_{step}": answer,
            f"env{env}_answer_logp_{step}": logps[0],
            f"env{env}_label_logp_{step}": logps[1],
        }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, parts=np.array(parts), **arrays, **facts)
    misc.write_whole(file, buffer.getvalue(), check)


def load(file: Path) -> dict[str, np.ndarray]:
    """The file's arrays, {} if there is no such file; InputError if it is broken."""
    if not file.exists():
        return {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read: {error}.") from error


def read(
    arrays: dict[str, np.ndarray], env: int, part: str, step: int
) -> Answers | None:
    """A split's answers after that step, in the order of places; None if not kept."""
    if f"env{env}_answer_{step}" not in arrays:
        return None
    number = arrays["parts"].tolist().index(part) + 1
    places = np.flatnonzero(arrays[f"env{env}_part"] == number)
    names = ("label", f"answer_{step}", f"answer_logp_{step}", f"label_logp_{step}")
    return Answers(
        env, part, places, *(arrays[f"env{env}_{name}"][places] for name in names)
    )
