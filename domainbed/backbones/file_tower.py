"""What a feature file knows of the CLIP that made it: enough for a head, no tower.

Letters as in `clip.py`: C prompts, K text layers, D image width, W text width, E joint
embedding.
"""

from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from domainbed.backbones.clip import FEATURES, CLIPBackbone
from domainbed.lib import feature_file
from domainbed.lib.errors import InputError, did_you_mean
from domainbed.lib.paths import name_and_place


class FileTower(CLIPBackbone):
    """A backbone without towers: projections, scale and the texts that were encoded.

    `name` is `Features:FILE`. Whatever else a method wants of it is an InputError. What
    trains on it is saved with the fingerprint of the CLIP that made the file, and loads
    on that one, too.
    """

    def __init__(self, name: str):
        nn.Module.__init__(self)
        _, place = name_and_place(name.removeprefix(FEATURES))
        file = feature_file.read(Path(place))
        self.name, self.content = name, file.content
        self.fingerprint = file.fingerprint
        self.n_classes, self.n_layers = len(file.class_names), file.z.shape[1]
        self.prompts = None if file.prompts is None else file.prompts.tolist()
        arrays = {"of_image": file.image_projection, "of_text": file.text_projection}
        arrays |= {"t": file.t, "logit_scale": file.scale}
        for own, array in arrays.items():
            tensor = None if array is None else torch.as_tensor(array)
            self.register_buffer(own, tensor, persistent=False)

    @property
    def model(self) -> NoReturn:
        raise InputError(
            f"this method runs through CLIP's towers, and {self.name} has only "
            f"{self.content}; methods on stored features, as LFA, take these, and "
            "hyperparameter clip_backbone can name the CLIP that made them."
        )

    @property
    def resolution(self) -> int:
        return self.model.visual.input_resolution

    @property
    def image_projection(self) -> torch.Tensor:
        return self.of_image

    @property
    def text_projection(self) -> torch.Tensor:
        self.check_texts()
        return self.of_text

    @property
    def n_image_layers(self) -> int:
        return self.n_layers

    @property
    def scale(self) -> torch.Tensor:
        return self.logit_scale

    def check_texts(self) -> None:
        """InputError if the file has none."""
        if self.t is None:
            raise InputError(
                f"this method compares with the classes' texts, and {self.name} has "
                f"{self.content}; LinearERM needs none, nor does ERM with "
                "hyperparameter input=features."
            )

    def encode_text_layers(self, prompts: list[str]) -> torch.Tensor:
        """t (C, K, W), as it stands in the file.

        Texts of a file that says no prompts are its classes', however they are asked.
        """
        self.check_texts()
        if self.prompts is None:
            if len(prompts) != self.n_classes:
                raise InputError(
                    f"{self.name} has a text for each of its {self.n_classes} classes, "
                    f"not for {len(prompts)} prompts."
                )
            return self.t
        rows = {prompt: i for i, prompt in enumerate(self.prompts)}
        unknown = [prompt for prompt in prompts if prompt not in rows]
        if unknown:
            raise InputError(
                f"{self.name} has no text {unknown[0]!r}; features export writes those "
                f"of each --prompt.{did_you_mean(unknown[0], rows)}"
            )
        return self.t[[rows[prompt] for prompt in prompts]]

    def kept_text_layers(self, prompts: list[str]) -> torch.Tensor:
        """The same: they are kept in the file, perhaps not of all layers."""
        return self.encode_text_layers(prompts)
