"""A finished run's model, and images as its evaluation saw them."""

import functools
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from domainbed import datasets
from domainbed.algorithms import get_algorithm_class, reads_stored
from domainbed.algorithms_lfa import CLIPAlgorithm, ZeroShotCLIP
from domainbed.backbones import clip_transform
from domainbed.features.store import default_feature_dir, open_features
from domainbed.hparams_registry import default_hparams
from domainbed.lib.errors import InputError
from domainbed.lib.transforms import EVALUATE
from domainbed.runs.folder import RunFolder
from domainbed.training import load_algorithm


class Model:
    """A trained algorithm; `args` are its run's, `data_dir` among them."""

    def __init__(self, name: str, algorithm: CLIPAlgorithm, args: dict[str, Any]):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name, self.args = name, args
        self.algorithm = algorithm.to(device).eval()
        self.hparams = algorithm.hparams
        names = self.hparams.get("class_names")
        self.class_names = names or [f"class {i}" for i in range(algorithm.num_classes)]
        self._items: dict[int, Dataset] = {}  # by environment

    @functools.cached_property
    def dataset(self) -> datasets.ImageDataset:
        """The run's dataset; InputError if its classes are others than the run's."""
        name, data_dir = self.args["dataset"], self.args["data_dir"]
        missing = {"allow_missing_classes": self.args.get("allow_missing_classes")}
        dataset = datasets.get_dataset_class(name)(
            data_dir, self.args["test_envs"], self.hparams | missing
        )
        if dataset.class_names and dataset.class_names != self.class_names:
            raise InputError(
                f"{name} in {data_dir} has other classes than those that "
                f"{self.name} was trained on; give the run's data as --data_dir."
            )
        return dataset

    def items(self, env: int) -> Dataset:
        """Environment `env` as the run evaluated it: images, or stored features."""
        if env not in self._items:
            images = self.dataset.unaugmented(env)
            stores = isinstance(images, datasets.ImageEnvironment)
            stores = stores and not self.args.get("no_feature_store")
            if stores and reads_stored(self.algorithm, self.hparams):
                self.algorithm.given = self.algorithm.stored_kind.name
                images = self.stored(images)
            self._items[env] = images
        return self._items[env]

    def stored(self, images: datasets.ImageEnvironment) -> Dataset:
        """The images' entry in the run's feature store."""
        folder = self.args.get("feature_dir")
        return open_features(
            images,
            self.algorithm.backbone,
            Path(folder or default_feature_dir(self.args["data_dir"])),
            self.hparams["feature_dtype"],
            strict=bool(self.args.get("strict_fingerprint")),
            kind=self.algorithm.stored_kind,
        )

    def item(self, env: int, index: int) -> torch.Tensor:
        """What the algorithm takes of one item: x (1, ...)."""
        return self.to_device(self.items(env)[index][0][None])

    def read(self, image: Image.Image) -> torch.Tensor:
        """What the algorithm takes of any picture: x (1, ...)."""
        transform = EVALUATE
        if self.hparams["clip_transform"]:
            transform = clip_transform(self.hparams["clip_backbone"])
        x = self.to_device(transform(image)[None])
        if self.algorithm.given == "images":
            return x
        return self.algorithm.stored_kind.encode(x)

    def to_device(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.algorithm.backbone.scale.device)


def load_model(flag: str, folder: Path, data_dir: str | None = None) -> Model:
    """The model of a finished run; InputError, with the flag, if there is none.

    `data_dir` is where the dataset is now, None for where the run found it.
    """
    check_finished(flag, folder)
    try:
        path = folder / "model.pkl"
        saved = torch.load(path, map_location="cpu", weights_only=True)
        args = saved["args"]
        name, dataset = args["algorithm"], args["dataset"]
    except Exception as error:  # whatever a damaged file makes torch.load raise
        raise unreadable(flag, folder, error) from error
    if not issubclass(get_algorithm_class(name), CLIPAlgorithm):
        raise InputError(
            f"{flag} {folder} is a run of {name}; cards are for the methods on CLIP, "
            "such as LFA and LinearProbeCLIP."
        )
    if not issubclass(datasets.get_dataset_class(dataset), datasets.ImageDataset):
        raise InputError(
            f"{flag} {folder} is a run on {dataset}, whose items are no image files; "
            "cards show pictures."
        )
    if data_dir is not None:
        args = args | {"data_dir": data_dir, "feature_dir": None}
    try:
        return Model(name, load_algorithm(folder), args)
    except InputError:
        raise
    except Exception as error:  # weights that do not fit, hyperparameters that lack
        raise unreadable(flag, folder, error) from error


def check_finished(flag: str, folder: Path) -> None:
    """InputError that says why, unless the folder holds a saved model."""
    if not folder.is_dir():
        raise InputError(f"{flag} {folder} is no folder; give a finished run's.")
    if (folder / "model.pkl").is_file():
        return
    run = RunFolder(folder)
    if run.state == "done":
        reason = "it was trained with --skip_model_save"
    elif (folder / "out.txt").exists() or (folder / "results.jsonl").exists():
        reason = f"its state is: {run.state}"
    else:
        reason = "it is no run's folder"
    raise InputError(f"{flag} {folder} holds no model.pkl: {reason}.")


def unreadable(flag: str, folder: Path, error: Exception) -> InputError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{flag} {folder}: cannot use its model.pkl ({first_line}).")


def zero_shot(model: Model) -> Model:
    """Zero-shot CLIP of that model's backbone, prompt and images."""
    hparams = default_hparams("ZeroShotCLIP", model.args["dataset"])
    own = ("clip_backbone", "clip_transform", "prompt")
    hparams |= {name: model.hparams[name] for name in own}
    algorithm = ZeroShotCLIP(
        (3, *[model.algorithm.backbone.resolution] * 2),
        len(model.class_names),
        1,  # training domains: the least there can be, of which it sees nothing
        hparams | {"class_names": model.class_names},
    )
    return Model("ZeroShotCLIP", algorithm, model.args)
