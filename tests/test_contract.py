"""Every public name of the DomainBed contract is where its users import it from."""

import inspect

import pytest

from domainbed import (
    algorithms,
    command_launchers,
    datasets,
    hparams_registry,
    model_selection,
    networks,
)
from domainbed.lib import fast_data_loader, misc, query, reporting
from domainbed.scripts import (
    collect_results,
    list_top_hparams,
    save_images,
    sweep,
    train,
)

NAMES = {
    algorithms: ["ALGORITHMS", "get_algorithm_class", "Algorithm", "ERM"],
    command_launchers: ["REGISTRY"],
    datasets: [
        "DATASETS",
        "get_dataset_class",
        "num_environments",
        "MultipleDomainDataset",
    ],
    hparams_registry: ["default_hparams", "random_hparams"],
    networks: ["Featurizer", "Classifier", "MLP"],
    misc: [
        "seed_hash",
        "split_dataset",
        "make_weights_for_balanced_classes",
        "accuracy",
    ],
    query: ["Q", "make_selector_fn"],
    reporting: ["load_records", "get_grouped_records"],
    fast_data_loader: ["InfiniteDataLoader", "FastDataLoader"],
    model_selection: [
        "IIDAccuracySelectionMethod",
        "LeaveOneOutSelectionMethod",
        "OracleSelectionMethod",
        "IIDAutoLRAccuracySelectionMethod",
    ],
    collect_results: ["format_mean", "print_table", "main"],
    list_top_hparams: ["main"],
    save_images: ["main"],
    sweep: ["Job", "make_args_list", "main"],
    train: ["main"],
}


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_names(module):
    assert [name for name in NAMES[module] if not hasattr(module, name)] == []


def test_signatures():
    def parameters(function):
        return list(inspect.signature(function).parameters)

    base = algorithms.Algorithm
    assert parameters(base) == ["input_shape", "num_classes", "num_domains", "hparams"]
    assert parameters(base.update) == ["self", "minibatches", "unlabeled"]
    assert parameters(base.predict) == ["self", "x"]
    assert parameters(networks.Featurizer) == ["input_shape", "hparams"]
    names = ["in_features", "out_features", "is_nonlinear"]
    assert parameters(networks.Classifier) == names
    assert parameters(networks.MLP) == ["n_inputs", "n_outputs", "hparams"]
    assert parameters(misc.split_dataset) == ["dataset", "n", "seed"]
    assert parameters(misc.accuracy) == ["network", "loader", "weights", "device"]
    names = ["table", "header_text", "row_labels", "col_labels", "colwidth", "latex"]
    assert parameters(collect_results.print_table) == names
    assert parameters(sweep.Job) == ["train_args", "sweep_output_dir"]
    assert parameters(sweep.make_args_list) == [
        *["n_trials", "dataset_names", "algorithms", "n_hparams_from", "n_hparams"],
        *["steps", "data_dir", "task", "holdout_fraction", "single_test_envs"],
        "hparams",
    ]


def test_the_datasets_and_their_numbers():
    upstream = "Debug28 Debug224 ColoredMNIST RotatedMNIST VLCS PACS OfficeHome "
    upstream += "TerraIncognita DomainNet SVIRO WILDSCamelyon WILDSFMoW "
    upstream += "SpawriousO2O_easy SpawriousO2O_medium SpawriousO2O_hard "
    upstream += "SpawriousM2M_easy SpawriousM2M_medium SpawriousM2M_hard"
    ours = [name for name in datasets.DATASETS if not name.startswith("Emoji")]
    assert ours == upstream.split()
    base = datasets.MultipleDomainDataset
    assert (base.N_STEPS, base.CHECKPOINT_FREQ, base.N_WORKERS) == (5001, 100, 8)
    every_300 = ["VLCS", "PACS", "OfficeHome", "TerraIncognita", "SVIRO"]
    for name in every_300:
        assert datasets.get_dataset_class(name).CHECKPOINT_FREQ == 300
    assert datasets.get_dataset_class("DomainNet").CHECKPOINT_FREQ == 1000


def test_flags_and_their_defaults():
    given = vars(train.parse_args([]))
    assert (
        given
        | {
            "data_dir": None,
            "dataset": "RotatedMNIST",
            "algorithm": "ERM",
            "task": "domain_generalization",
            "hparams": None,
            "hparams_seed": 0,
            "trial_seed": 0,
            "seed": 0,
            "steps": None,
            "checkpoint_freq": None,
            "test_envs": [0],
            "output_dir": "train_output",
            "holdout_fraction": 0.2,
            "uda_holdout_fraction": 0,
            "skip_model_save": False,
            "save_model_every_checkpoint": False,
        }
        == given
    )
    needed = ["--output_dir", "o", "--data_dir", "d", "--command_launcher", "local"]
    given = vars(sweep.parse_args(["launch", *needed]))
    assert (
        given
        | {
            "datasets": [n for n in datasets.DATASETS if not n.startswith("Debug")],
            "algorithms": algorithms.ALGORITHMS,
            "task": "domain_generalization",
            "n_hparams_from": 0,
            "n_hparams": 20,
            "seed": 0,
            "n_trials": 3,
            "steps": None,
            "hparams": None,
            "holdout_fraction": 0.2,
            "single_test_envs": False,
            "skip_confirmation": False,
        }
        == given
    )
    assert set(command_launchers.REGISTRY) >= {"local", "dummy", "multi_gpu"}
