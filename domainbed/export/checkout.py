"""The CLIP algorithms inside somebody else's DomainBed checkout.

Their files are copied beside its own, unchanged, and marked lines at the end of its
`algorithms.py` and `hparams_registry.py` make them known there. What is copied imports
nothing that such a checkout lacks. The marked lines hold the copies' digests: a file of
another content is somebody's work, and is neither overwritten nor deleted.
"""

import ast
import hashlib
import re
import warnings
from pathlib import Path

from domainbed.lib.errors import InputError

PACKAGE = Path(__file__).parents[1]
COPIED = (
    "algorithms_lfa.py",
    "algorithms_dpl.py",
    "algorithms_qlora.py",
    "backbones/__init__.py",
    "backbones/clip.py",
    "backbones/conversion.py",
    "backbones/qlora.py",
    "backbones/weights.py",
    "lib/bounds.py",
    "lib/cuda_graph.py",
    "lib/errors.py",
    "lib/kept.py",
    "lib/optional.py",
    "lib/transforms.py",
    "assets/emoji_clip.pt",
)
OWN_FOLDERS = ("assets", "backbones")  # made by an export, and emptied with it
# What each file must have for the copies to work beside it, as `anchors_of` writes it.
ANCHORS = {
    "algorithms.py": (
        "ALGORITHMS = [...]",
        "get_algorithm_class(algorithm_name)",
        "Algorithm.__init__(self, input_shape, num_classes, num_domains, hparams)",
    ),
    "hparams_registry.py": (
        "_hparams(algorithm, dataset, random_seed)",
        "default_hparams calls _hparams",
        "random_hparams calls _hparams",
    ),
    "networks.py": ("MLP.__init__(self, n_inputs, n_outputs, hparams)",),
    "lib/misc.py": ("seed_hash(*args)",),
}
BEGIN, END = "# >>> domainbed-lfa", "# <<< domainbed-lfa"
MARKED = re.compile(rf"\r?\n{BEGIN}\r?\n.*?\n{END}\r?\n".encode(), re.DOTALL)
COPY = re.compile(rb"^#   (\w+(?:/\w+)*\.\w+) ([0-9a-f]{64})\r?$", re.MULTILINE)

# QLoRALFA is not among them: it builds on another run, which upstream's scripts cannot
# order. Families are imported when asked for, so that a Python without clip still runs
# the checkout's own algorithms, and in whatever order modules import each other.
ALGORITHMS_LINES = '''\
# `python -m domainbed.scripts.export` wrote these lines and the files named here with
# their SHA-256; with --remove it takes both out again.
COPIES
import importlib

CLIP_FAMILIES = {
    "ZeroShotCLIP": "algorithms_lfa",
    "LinearProbeCLIP": "algorithms_lfa",
    "LFA": "algorithms_lfa",
    "DPLCLIP": "algorithms_dpl",
    "QLoRACLIP": "algorithms_qlora",
}
ALGORITHMS.extend(CLIP_FAMILIES)
HparamRows, Minibatches = dict, list  # what the families annotate with
Algorithm.given, Algorithm.step = "images", 0  # what they are told here


def register(cls):
    """The class itself, as it is; CLIP_FAMILIES says where to find it."""
    return cls


get_own_algorithm_class = get_algorithm_class


def get_algorithm_class(algorithm_name):
    """The algorithm of that name; a CLIP algorithm's file is imported only now."""
    if algorithm_name not in CLIP_FAMILIES:
        return get_own_algorithm_class(algorithm_name)
    family = importlib.import_module("domainbed." + CLIP_FAMILIES[algorithm_name])
    return getattr(family, algorithm_name)
'''
HPARAMS_LINES = '''\
# `python -m domainbed.scripts.export` wrote these lines; --remove takes them out again.
import numpy as np

from domainbed import algorithms
from domainbed.lib import misc

_own_hparams = _hparams


def _hparams(algorithm, dataset, random_seed):
    """The rows above; a CLIP algorithm's own go before them."""
    hparams = _own_hparams(algorithm, dataset, random_seed)
    if algorithm not in algorithms.CLIP_FAMILIES:
        return hparams
    rows = algorithms.get_algorithm_class(algorithm).hparam_rows(dataset)
    rows.pop("feature_dtype", None)  # no features are stored here
    rows["clip_transform"] = (False, None)  # images come normalised for ImageNet
    for name, (default, draw) in rows.items():
        value = default
        if draw:
            state = np.random.RandomState(misc.seed_hash(random_seed, name))
            value = np.asarray(draw(state)).item()  # a plain number, for JSON
        hparams[name] = (default, value)
    return hparams
'''
NEW_NAMES = (
    "CLIP_FAMILIES",
    "HparamRows",
    "Minibatches",
    "register",
    "ZeroShotCLIP",
    "LinearProbeCLIP",
    "LFA",
    "DPLCLIP",
    "QLoRACLIP",
)

Changes = dict[Path, bytes | None]  # a file's new content; None: no such file


def exported(checkout: Path) -> Changes:
    """What brings the CLIP algorithms of this version into the checkout."""
    changes = removed(checkout)
    folder = checkout / "domainbed"
    for name, anchors in ANCHORS.items():
        check_anchors(folder / name, changes.get(folder / name), anchors)
    copies = {name: (PACKAGE / name).read_bytes() for name in COPIED}
    for name, content in copies.items():
        path = folder / name
        if path not in changes and path.exists() and path.read_bytes() != content:
            raise InputError(
                f"{path} exists already and is not what would be copied there; nothing "
                "was changed."
            )
        changes[path] = content
    digests = [f"#   {name} {digest(content)}" for name, content in copies.items()]
    for name, lines in (
        ("algorithms.py", ALGORITHMS_LINES.replace("COPIES", "\n".join(digests))),
        ("hparams_registry.py", HPARAMS_LINES),
    ):
        changes[folder / name] = marked(changes[folder / name], lines)
    return changes


def removed(checkout: Path) -> Changes:
    """What takes out of the checkout all that an export, of any version, put there."""
    folder = checkout / "domainbed"
    changes: Changes = {}
    for name in ("algorithms.py", "hparams_registry.py"):
        content = read(folder / name)
        changes[folder / name] = unmarked(folder / name, content)
        for part in MARKED.findall(content):
            for copy, expected in COPY.findall(part):
                path = folder / copy.decode()
                if path.exists() and digest(path.read_bytes()) != expected.decode():
                    raise InputError(
                        f"{path} was changed after it was exported; move it away and "
                        "run this again, nothing was changed."
                    )
                changes[path] = None
    return changes


def read(path: Path) -> bytes:
    """A file of the checkout."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}); --to names the folder of a "
            "DomainBed checkout, in which domainbed/ lies."
        ) from error


def marked(content: bytes, lines: str) -> bytes:
    """The content with those lines behind it, between marks, in its own line ends."""
    block = f"\n{BEGIN}\n{lines}{END}\n".encode()
    return content + (block.replace(b"\n", b"\r\n") if b"\r\n" in content else block)


def unmarked(path: Path, content: bytes) -> bytes:
    """The content as it was before `marked`; lines that came behind stay lines."""

    def joint(block: re.Match[bytes]) -> bytes:
        inside = block.end() < len(content)
        return b"\n" if inside and content[: block.start()][-1:] != b"\n" else b""

    rest = MARKED.sub(joint, content)
    if BEGIN.encode() in rest or END.encode() in rest:
        raise InputError(
            f"{path} has {BEGIN!r} or {END!r} without the other; take these lines out "
            "by hand, nothing was changed."
        )
    return rest


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_anchors(path: Path, content: bytes | None, anchors: tuple[str, ...]) -> None:
    """InputError unless the Python file has these, and room for our names."""
    try:
        with warnings.catch_warnings():  # of its string escapes
            warnings.simplefilter("ignore")
            tree = ast.parse(read(path) if content is None else content)
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{path} is no Python that can be read ({error}); nothing was changed."
        ) from error
    found = anchors_of(tree)
    for anchor in anchors:
        if anchor not in found:
            raise InputError(
                f"{path} is not as in DomainBed, which has '{anchor}' there; nothing "
                "was changed."
            )
    if path.name == "algorithms.py" and (taken := found & set(NEW_NAMES)):
        raise InputError(
            f"{path} has its own {', '.join(sorted(taken))}; nothing was changed."
        )


def anchors_of(tree: ast.Module) -> set[str]:
    """What a module has at its top level: names, signatures, calls, words in lists."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
            names = [f.id for f in calls if isinstance(f, ast.Name)]
            found |= {node.name, signature(node)}
            found |= {f"{node.name} calls {name}" for name in names}
        elif isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            found |= {node.name, *(f"{node.name}.{signature(n)}" for n in methods)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {ast.unparse(target) for target in node.targets}
            if isinstance(node.value, ast.List):
                found |= {f"{ast.unparse(target)} = [...]" for target in node.targets}
                items = [n for n in node.value.elts if isinstance(n, ast.Constant)]
                found |= {str(item.value) for item in items}
    return found


def signature(function: ast.FunctionDef) -> str:
    """name(arguments), without defaults and annotations."""
    arguments = [a.arg for a in function.args.posonlyargs + function.args.args]
    if function.args.vararg:
        arguments.append(f"*{function.args.vararg.arg}")
    return f"{function.name}({', '.join(arguments)})"


def write(changes: Changes) -> list[Path]:
    """Make these changes; the files that were other before.

    Copies come first: an export that a full disk ends has made nothing known.
    """
    done = []
    order = sorted(changes, key=lambda path: path.name in ANCHORS)
    try:
        for path in order:
            content = changes[path]
            if content == (path.read_bytes() if path.exists() else None):
                continue
            if content is None:
                path.unlink()
                if path.parent.name in OWN_FOLDERS and not any(path.parent.iterdir()):
                    path.parent.rmdir()
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            done.append(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}); run the same again when that is "
            "mended."
        ) from error
    return done
