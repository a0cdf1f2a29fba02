"""What upstream's training script asks of hyperparameters, datasets, algorithms."""

import argparse
import collections
import json
import os
import random
import sys

import numpy as np
import torch

from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib import misc
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", type=str)
    parser.add_argument("--dataset", type=str, default="RotatedMNIST")
    parser.add_argument("--algorithm", type=str, default="ERM")
    parser.add_argument("--task", type=str, default="domain_generalization")
    parser.add_argument("--hparams", type=str)
    parser.add_argument("--hparams_seed", type=int, default=0)
    parser.add_argument("--trial_seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--checkpoint_freq", type=int, default=None)
    parser.add_argument("--test_envs", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=str, default="train_output")
    parser.add_argument("--holdout_fraction", type=float, default=0.2)
    args = parser.parse_args()

    os.makedirs(args.output_dir, exist_ok=True)
    sys.stdout = misc.Tee(os.path.join(args.output_dir, "out.txt"))
    sys.stderr = misc.Tee(os.path.join(args.output_dir, "err.txt"))

    if args.hparams_seed == 0:
        hparams = hparams_registry.default_hparams(args.algorithm, args.dataset)
    else:
        hparams = hparams_registry.random_hparams(
            args.algorithm,
            args.dataset,
            misc.seed_hash(args.hparams_seed, args.trial_seed),
        )
    if args.hparams:
        hparams.update(json.loads(args.hparams))

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    dataset = vars(datasets)[args.dataset](args.data_dir, args.test_envs, hparams)
    in_splits, out_splits = [], []
    for i, env in enumerate(dataset):
        out, in_ = misc.split_dataset(
            env,
            int(len(env) * args.holdout_fraction),
            misc.seed_hash(args.trial_seed, i),
        )
        in_splits.append(in_)
        out_splits.append(out)
    train_loaders = [
        InfiniteDataLoader(env, None, hparams["batch_size"], dataset.N_WORKERS)
        for i, env in enumerate(in_splits)
        if i not in args.test_envs
    ]
    eval_loaders = {
        f"env{i}_{name}": FastDataLoader(env, 64, dataset.N_WORKERS)
        for name, splits in [("in", in_splits), ("out", out_splits)]
        for i, env in enumerate(splits)
    }

    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    algorithm = algorithm_class(
        dataset.input_shape,
        dataset.num_classes,
        len(dataset) - len(args.test_envs),
        hparams,
    )
    algorithm.to(device)

    minibatches_iterator = zip(*train_loaders, strict=True)
    n_steps = args.steps or dataset.N_STEPS
    checkpoint_freq = args.checkpoint_freq or dataset.CHECKPOINT_FREQ
    vals = collections.defaultdict(list)
    for step in range(n_steps):
        minibatches = [
            (x.to(device), y.to(device)) for x, y in next(minibatches_iterator)
        ]
        for key, val in algorithm.update(minibatches, None).items():
            vals[key].append(val)
        if step % checkpoint_freq == 0 or step == n_steps - 1:
            results = {key: np.mean(val) for key, val in vals.items()}
            for name, loader in eval_loaders.items():
                results[f"{name}_acc"] = misc.accuracy(algorithm, loader, None, device)
            results.update(step=step, hparams=hparams, args=vars(args))
            print({key: results[key] for key in ["step", "loss"]})
            with open(os.path.join(args.output_dir, "results.jsonl"), "a") as f:
                f.write(json.dumps(results, sort_keys=True) + "\n")
            vals.clear()

    torch.save(
        {
            "args": vars(args),
            "model_input_shape": dataset.input_shape,
            "model_num_classes": dataset.num_classes,
            "model_num_domains": len(dataset) - len(args.test_envs),
            "model_hparams": hparams,
            "model_dict": algorithm.state_dict(),
        },
        os.path.join(args.output_dir, "model.pkl"),
    )
    with open(os.path.join(args.output_dir, "done"), "w") as f:
        f.write("done")
