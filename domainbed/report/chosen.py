"""What one method of model selection chose among all draws of a dataset."""

from typing import NamedTuple

import pandas as pd

from domainbed.model_selection import SelectionMethod
from domainbed.names import algorithm_names
from domainbed.report import data
from domainbed.report.parts import Part
from domainbed.tables import frames
from domainbed.tables.protocol import Apart, Protocol, apart

MOST_CLASSES = 24  # rows of a picture


class Chosen(NamedTuple):
    """All draws of a dataset, with what one selection method chose among them."""

    method: type[SelectionMethod]
    draws: pd.DataFrame
    oracle: pd.DataFrame  # the same of the oracle
    steps: pd.DataFrame
    runs: pd.DataFrame
    names: list[str]  # of the environments
    rows: dict[str, Protocol]  # of each algorithm
    reference: str | None  # the algorithm that others are compared with

    @property
    def best(self) -> pd.DataFrame:
        return self.draws[self.draws["chosen"]]

    @property
    def algorithms(self) -> list[str]:
        return frames.in_order(self.draws["algorithm"], algorithm_names())

    @property
    def apart(self) -> Apart:
        """The methods that are not ranked with the others."""
        names = frames.in_order(self.rows, algorithm_names())
        return apart({"": self.rows}, [""], names)

    @property
    def accuracies(self) -> pd.DataFrame:
        """As frames.accuracies gives them."""
        return data.accuracies(self.best)

    def wide(self, accs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Means and errors of such a frame, with the averages."""
        means = pd.concat([frames.summary(accs), frames.averages(accs)])
        return data.wide(means, [*self.names, frames.AVERAGE])

    def named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with its test environments' names."""
        names = [frames.environment_name(self.names, env) for env in frame["test_env"]]
        return frame.assign(environment=names)

    @property
    def legend(self) -> list[tuple[str, str]]:
        """[(colour, name)] of the test environments."""
        envs = sorted(self.draws["test_env"].unique())
        names = (frames.environment_name(self.names, env) for env in envs)
        return [(f"c{env % 10}", name) for env, name in zip(envs, names, strict=True)]


def absent(method: type[SelectionMethod]) -> Part:
    """What stands where a method has nothing to choose from."""
    return Part(method.name, [f"The runs that {method.name} needs are not here."])
