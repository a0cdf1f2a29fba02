"""Pretrain the emoji CLIP, the small stand-in for CLIP that ships with this package.

    export OMP_WAIT_POLICY=passive  # threads that spin on shared cores waste them
    python tools/pretrain_emoji_clip.py
    python tools/pretrain_emoji_clip.py --evaluate domainbed/assets/emoji_clip.pt

CLIP's contrastive loss learns nothing from 40,000 drawings, so what to say is fixed
first: a sentence encoder embeds the captions (drawing_corpus.py), the text tower learns
to reproduce that space, the image tower to point into it (as in LiT, Zhai et al. 2022,
https://arxiv.org/abs/2111.07991, with a teacher for the frozen tower). An ImageNet
network teaches the image tower midway, so that its layers know different things. A
fifth of the patches is dropped, for speed (FLIP, Li et al. 2023,
https://arxiv.org/abs/2212.00794); matrices are trained by Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/).

Stopping it loses minutes: the same command goes on from what --cache holds.
"""

import argparse
import io
import math
import os
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import clip
import torch
import torch.nn.functional as F
from build_emoji_dg import CLASSES
from clip.model import CLIP
from drawing_corpus import PROMPT, embed_captions, embed_drawings, load_corpus
from emoji_tasks import ImageTask, TextTask
from emoji_towers import build_clip
from PIL import Image

SAVE_EVERY = 4  # minutes
SHIPPED_SCALE = 40  # sharper, nearer to CLIP's 100: heads are tuned at such step sizes


def train(task: ImageTask | TextTask, minutes: float, cache: Path, save) -> None:
    """Train the task's tower for so many minutes, those of earlier runs included."""
    parameters, file = task.parameters(), cache / f"{task.name}.pt"
    inner = {n for n, p in parameters.items() if "resblocks" in n and p.ndim == 2}
    optimizers = [
        torch.optim.Muon(
            [parameters[n] for n in sorted(inner)],
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",  # so that one learning rate serves both
        ),
        torch.optim.AdamW(
            [p for n, p in parameters.items() if n not in inner],
            weight_decay=0.05,
            betas=(0.9, 0.98),
            fused=True,  # or the step on the token table costs as much as the rest
        ),
    ]
    step, spent = resume(file, parameters, optimizers)
    saved = spent
    while spent < minutes:
        start = time.perf_counter()
        torch.manual_seed(step)  # the same draws after a stop
        rate = task.peak * schedule(spent / minutes)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = task.loss(task.draw(), spent / minutes)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        spent += (time.perf_counter() - start) / 60
        if step % 100 == 0:
            print(f"{task.name} {step} {spent:.1f} min loss {loss:.3f}", flush=True)
        if spent - saved > SAVE_EVERY or spent >= minutes:
            saved = spent
            states = [optimizer.state_dict() for optimizer in optimizers]
            weights = {name: p.data for name, p in parameters.items()}
            write(file, step=step, spent=spent, weights=weights, states=states)
            print(f"{task.name} {step} {task.check()}", flush=True)
            save()


def schedule(done: float) -> float:
    """Share of the peak learning rate: two per cent of warm-up, then a cosine."""
    return min(done / 0.02 + 0.01, 0.5 + 0.5 * math.cos(math.pi * min(done, 1)))


def resume(file: Path, parameters, optimizers) -> tuple[int, float]:
    if not file.exists():
        return 0, 0.0
    state = torch.load(file)
    for name, p in parameters.items():
        p.data.copy_(state["weights"][name])
    for optimizer, saved in zip(optimizers, state["states"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["spent"]


def write(file: Path, **state) -> None:
    """All or nothing: a stop while writing leaves the last state as it was."""
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def export(model: CLIP, file: Path) -> None:
    """OpenAI's layout in half precision, which clip.load(file) rebuilds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {name: p.detach().half() for name, p in model.state_dict().items()}
    state["logit_scale"] = torch.tensor(math.log(SHIPPED_SCALE)).half()
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


@torch.inference_mode()
def evaluate(file: Path, archive: Path) -> dict[str, float]:
    """EmojiDG's domains -> zero-shot accuracy in per cent."""
    model, preprocess = clip.load(str(file), device="cpu")
    prompts = [PROMPT.format(label.replace("_", " ")) for label in CLASSES]
    text = F.normalize(model.encode_text(clip.tokenize(prompts)), dim=1)
    right = defaultdict(list)
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if "/" not in name:  # a licence
                continue
            domain, label, _ = name.split("/")
            image = preprocess(Image.open(io.BytesIO(files.read(name))))
            z = model.encode_image(image[None])
            right[domain].append(list(CLASSES)[(z @ text.T).argmax()] == label)
    return {domain: 100 * sum(hits) / len(hits) for domain, hits in right.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    assets = Path(__file__).resolve().parents[1] / "domainbed" / "assets"
    parser.add_argument("--output", type=Path, default=assets / "emoji_clip.pt")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/emoji")
    parser.add_argument("--text-minutes", type=float, default=5.5)
    parser.add_argument("--image-minutes", type=float, default=56)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", type=Path, metavar="CHECKPOINT")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    if args.evaluate is None:
        torch.manual_seed(0)
        model = build_clip()
        corpus = load_corpus(args.cache)
        words = embed_captions(corpus.captions, args.cache)
        sights = embed_drawings(corpus.images[corpus.picture], args.cache)
        for task, minutes in [
            (TextTask(model, corpus.captions, words), args.text_minutes),
            (ImageTask(model, corpus, words, sights), args.image_minutes),
        ]:
            train(task, minutes, args.cache, lambda: export(model, args.output))
    accuracy = evaluate(args.evaluate or args.output, assets / "emoji_dg.zip")
    accuracy["mean"] = sum(accuracy.values()) / len(accuracy)
    print(" ".join(f"{domain} {value:.1f}" for domain, value in accuracy.items()))


if __name__ == "__main__":
    main()
