"""One file with what a frozen encoder made of labelled images and of their classes.

It ends in .npz or .safetensors and holds the arrays of LAYOUT, by these letters:

    N items, L image layers, D their width, M domains, C classes
    P texts, K text layers, W their width, E the width in which both are compared

`docs/features.md` explains them. Nothing in such a file is unpickled.
"""

import functools
import json
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from domainbed.lib.errors import InputError, did_you_mean, one_line
from domainbed.lib.misc import digest

Arrays = dict[str, np.ndarray]

ENDINGS = (".npz", ".safetensors")
STORED, FLOATS = ("float16", "float32"), ("float16", "float32", "float64")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
TEXTS = ("str",)
# name: (what its numbers can be, its shape). z and t of one layer may leave it out.
LAYOUT = {
    "z": (STORED, "NLD"),
    "labels": (INTEGERS, "N"),
    "domains": (INTEGERS, "N"),
    "class_names": (TEXTS, "C"),
    "domain_names": (TEXTS, "M"),
    "ids": (TEXTS, "N"),  # what the items are called
    "prompts": (TEXTS, "P"),
    "t": (FLOATS, "PKW"),  # without prompts (C, K, W)
    "image_projection": (FLOATS, "DE"),
    "text_projection": (FLOATS, "WE"),
    "scale": (FLOATS, ""),  # of a cosine, to make a logit
    "backbone": (TEXTS, ""),  # the fingerprint of the CLIP that made them
    "n_steps": (INTEGERS, ""),  # of a run, by default
    "checkpoint_freq": (INTEGERS, ""),
}
NEEDED = ("z", "labels", "domains", "class_names", "domain_names")
CHUNK = 2**24  # bytes that are looked at or written at once: memory stays bounded
SAMPLE = 1024  # rows of z that the digest looks at
EXPONENT = {"float16": ("u2", 0x7C00), "float32": ("u4", 0x7F800000)}


class FeatureFile:
    """The arrays of a file as they must be; InputError for the first that is not.

    Of those that may be missing, projections are the identity and the scale CLIP's own,
    100; ids, prompts, texts and the numbers of steps are None.
    """

    def __init__(self, path: Path, arrays: Arrays):
        self.path = path
        for name in NEEDED:
            if name not in arrays:
                held = ", ".join(sorted(arrays)) or "nothing"
                near = did_you_mean(name, arrays)
                raise self.wrong(f"has no array {name}; it holds {held}.{near}")
        own = {name: arrays[name] for name in LAYOUT.keys() & arrays.keys()}
        for name in own.keys() & {"z", "t"}:
            if own[name].ndim == 2:
                own[name] = own[name][:, None]
        widths = {"image_projection": "z", "text_projection": "t"}
        for name, of in widths.items():
            if of in own and name not in own:
                own[name] = np.eye(own[of].shape[-1], dtype=np.float32)
        self.check_shapes(own)
        self.z: np.ndarray = own["z"]
        self.labels = self.numbers(own, "labels", "class_names")
        self.domains = self.numbers(own, "domains", "domain_names")
        self.class_names = self.names(own, "class_names", at_least=2)
        self.domain_names = self.names(own, "domain_names", at_least=1)
        self.ids, self.prompts = own.get("ids"), own.get("prompts")
        self.t, self.image_projection, self.text_projection, scale = (
            self.floats(own, name)
            for name in ("t", "image_projection", "text_projection", "scale")
        )
        self.scale = np.float32(100) if scale is None else scale
        self.backbone, self.n_steps, self.checkpoint_freq = (
            own[name].item() if name in own else None
            for name in ("backbone", "n_steps", "checkpoint_freq")
        )

    def wrong(self, why: str) -> InputError:
        return InputError(
            f"the feature file {self.path} {why} docs/features.md has the layout."
        )

    def check_shapes(self, arrays: Arrays) -> None:
        """Each letter of LAYOUT is one number everywhere, and above 0."""
        known: dict[str, int] = {}
        for name, (kinds, letters) in LAYOUT.items():
            if name not in arrays:
                continue
            if name == "t" and "prompts" not in arrays:
                letters = letters.replace("P", "C")
            array = arrays[name]
            kind = "str" if array.dtype.kind == "U" else str(array.dtype)
            fits = array.ndim == len(letters) and all(
                size and size == known.setdefault(letter, size)
                for letter, size in zip(letters, array.shape, strict=False)
            )
            if kind not in kinds or not fits:
                shape = ", ".join(str(known.get(letter, letter)) for letter in letters)
                raise self.wrong(
                    f"has {name} of {kind} and shape {array.shape}; it must be of "
                    f"{' or '.join(kinds)} and shape ({shape})."
                )

    def numbers(self, arrays: Arrays, name: str, names: str) -> np.ndarray:
        """(N,), each the number of one of those names."""
        values, n = arrays[name].astype(np.int64), len(arrays[names])
        wrong = np.flatnonzero((values < 0) | (values >= n))
        if len(wrong):
            raise self.wrong(
                f"has {values[wrong[0]]} in {name}, at item {wrong[0]}; it must "
                f"be from 0 to {n - 1}, for {names} has {n}."
            )
        return values

    def names(self, arrays: Arrays, name: str, at_least: int) -> list[str]:
        """Texts, no two of them alike."""
        values = arrays[name].tolist()
        if len({*values}) < len(values) or len(values) < at_least:
            listed = ", ".join(values[:20])
            raise self.wrong(
                f"has {name} {listed}; there must be at least {at_least}, no two alike."
            )
        return values

    def floats(self, arrays: Arrays, name: str) -> np.ndarray | None:
        """In float32, finite."""
        if name not in arrays:
            return None
        values = arrays[name].astype(np.float32)
        if not np.isfinite(values).all():
            raise self.wrong(f"has numbers in {name} that are not finite.")
        return values

    def check_finite(self) -> None:
        """InputError with the first item of which a feature is not finite."""
        start = 0
        for chunk in chunks(self.z):
            # numpy's isfinite takes several times as long on float16.
            integer, exponent = EXPONENT[str(chunk.dtype)]
            bits = np.ascontiguousarray(chunk).view(integer)
            wrong = (bits & exponent == exponent).any(axis=(1, 2))
            if wrong.any():
                i = start + int(wrong.argmax())
                called = "" if self.ids is None else f" ({self.ids[i]})"
                raise self.wrong(f"has features in z, item {i}{called}, not finite.")
            start += len(chunk)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that name the content; of z its shape and SAMPLE rows."""
        rows = np.unique(np.linspace(0, len(self.z) - 1, SAMPLE, dtype=int))
        arrays = (self.z[rows], self.labels, self.domains, self.t, self.scale)
        arrays += (self.image_projection, self.text_projection)
        arrays += (self.ids, self.prompts)
        names = [self.z.shape, self.class_names, self.domain_names]
        rest = ("" if a is None else a.tobytes().hex() for a in arrays)
        return digest([json.dumps(names), *rest])

    @property
    def fingerprint(self) -> str:
        """Of the CLIP that made it; of an encoder without one, the digest."""
        return self.backbone or self.digest

    @property
    def content(self) -> str:
        """What it has, for a sentence."""
        n, layers, width = self.z.shape
        which = f"of {layers} layers" if layers > 1 else "of the last layer only"
        texts = "no texts" if self.t is None else f"{len(self.t)} texts"
        return f"the features {which}, {width} wide, of {n:,} images, and {texts}"


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array's rows, some at a time."""
    row = max(1, array[:1].nbytes)
    step = max(1, CHUNK // row)
    return (array[i : i + step] for i in range(0, len(array), step))


def check_ending(path: Path) -> None:
    """InputError unless the name says how the file is written."""
    if path.suffix not in ENDINGS:
        raise InputError(
            f"a feature file ends in {' or '.join(ENDINGS)}, not as {path}."
        )


def read(path: Path) -> FeatureFile:
    """The file, checked but for z's numbers; InputError with what is wrong with it."""
    path = path.expanduser()
    check_ending(path)
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(
            f"there is no feature file {path} ({error.strerror}); python -m "
            "domainbed.scripts.features export writes one."
        ) from error
    return _read(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, size: int, time: int) -> FeatureFile:
    """As `read`; anew when the file has changed."""
    try:
        arrays = from_npz(path) if path.suffix == ".npz" else from_safetensors(path)
    except Exception as error:  # what is no such file fails in any way
        reason = one_line(error, 200)
        raise InputError(
            f"the feature file {path} cannot be read: {reason}."
        ) from error
    return FeatureFile(path, arrays)


def from_npz(path: Path) -> Arrays:
    """The arrays of a .npz file, z as a map of it where it is not compressed."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "z"}
        if "z" in file.files:
            member = file.zip.getinfo("z.npy")
            whole = member.compress_type != zipfile.ZIP_STORED
            arrays["z"] = file["z"] if whole else mapped(path, file.zip, member)
    return arrays


def mapped(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.memmap:
    """The array in a member that is not compressed, as a map of the archive."""
    with archive.open(member) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0
        header = header if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        within = file.tell()
    if dtype.hasobject:
        raise ValueError("z holds Python objects")
    with open(path, "rb") as file:  # how long the member's own header is stands in it
        file.seek(member.header_offset + 26)
        n_name, n_extra = struct.unpack("<HH", file.read(4))
    start = member.header_offset + 30 + n_name + n_extra + within
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def from_safetensors(path: Path) -> Arrays:
    """The tensors of a .safetensors file, maps of it, and the texts of its metadata."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:  # of numpy's kind it would read all of z
        names = [*file.keys()]
        arrays = {name: file.get_tensor(name).numpy() for name in names}
        texts = file.metadata() or {}
    for name in texts.keys() & {
        n for n, (kinds, _) in LAYOUT.items() if kinds == TEXTS
    }:
        arrays[name] = np.array(json.loads(texts[name]))
    return arrays


def write(path: Path, z: Sequence[np.ndarray], arrays: Arrays) -> None:
    """The file of these arrays and of z, the rows of which come in several parts.

    It appears whole or not at all. A .npz file is written part by part; of a
    .safetensors file z is put together in memory.
    """
    check_ending(path)
    path = path.resolve()  # a link stays one
    part = path.with_name(f"{path.name}.part")
    part.touch()
    mode = part.stat().st_mode  # safetensors gives its files another
    try:
        if path.suffix == ".npz":
            to_npz(part, z, arrays)
        else:
            to_safetensors(part, z, arrays)
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def to_npz(path: Path, z: Sequence[np.ndarray], arrays: Arrays) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, parts in ({"z": z} | {n: [a] for n, a in arrays.items()}).items():
            shape = parts[0].shape
            if name == "z":
                shape = (sum(map(len, parts)), *shape[1:])
            about = {"descr": parts[0].dtype.str, "fortran_order": False}
            about["shape"] = shape
            # A ZipInfo of its own has no time in it: equal arrays, equal bytes.
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array_header_2_0(file, about)
                for own in parts:
                    for chunk in chunks(own) if own.ndim else [own]:
                        file.write(chunk.tobytes())


def to_safetensors(path: Path, z: Sequence[np.ndarray], arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    texts = {
        n: json.dumps(a.tolist()) for n, a in arrays.items() if a.dtype.kind == "U"
    }
    tensors = {n: np.array(a) for n, a in arrays.items() if n not in texts}
    save_file(tensors | {"z": np.concatenate(z)}, path, texts)
