"""Pretrain the emoji CLIP, a 4-million-weight stand-in for CLIP that ships with us.

    python tools/pretrain_emoji_clip.py                    # two cores, about 75 minutes
    python tools/pretrain_emoji_clip.py --evaluate domainbed/assets/emoji_clip.pt

CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020) in OpenAI's layout. Its
contrastive loss learns nothing from 40,000 drawings, so what to say is fixed first:
a sentence encoder embeds the captions (drawing_corpus.py), the text tower learns to
reproduce that space, the image tower to point into it (as in LiT, Zhai et al. 2022,
https://arxiv.org/abs/2111.07991, with a teacher for the frozen tower). An ImageNet
network teaches the image tower midway. A fifth of the patches is dropped, for speed
(FLIP, Li et al. 2023, https://arxiv.org/abs/2212.00794), matrices are trained by Muon
(https://kellerjordan.github.io/posts/muon/).

Shapes: B batch, L tokens, D width, E embedding, M candidates in a loss.
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
from clip.simple_tokenizer import SimpleTokenizer
from drawing_corpus import (
    DIMENSIONS,
    PROMPT,
    Corpus,
    embed_captions,
    embed_drawings,
    load_corpus,
)
from PIL import Image

PIXELS, PATCH, PATCHES, WIDTH, HEADS = 48, 8, 36, 128, 2
TOKENS = 16  # captions are short; the causal mask makes later positions irrelevant
MIDWAY = 5  # the image teacher speaks after this block of eight, words after the last
KEEP = 28  # patches seen, of 36, ...
WHOLE = 0.8  # ... until this share of the time has passed
SCALE = 14  # of cosines in training
SHARE = 20  # of cosines between targets: near captions share the credit
CANDIDATES = 4096  # drawn for each step's losses
SHIPPED_SCALE = 40  # sharper, nearer to CLIP's 100: heads are tuned at such step sizes
PREFIXES = ["a photo of a", "a drawing of a", "an icon of a", "a picture of the", ""]
CHANCES = 0.25, 0.2, 0.2, 0.05  # of line art, grey, swapped channels, negatives
SAVE_EVERY = 4  # minutes
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's pixels
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def build_clip() -> CLIP:
    return CLIP(DIMENSIONS, PIXELS, 8, WIDTH, PATCH, 77, 49408, WIDTH, HEADS, 4)


# --- Both towers, batch first and in bfloat16: three times as fast as OpenAI's code.


def cast(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's weights in bfloat16; gradients reach the originals."""
    return {name: p.bfloat16() for name, p in module.named_parameters()}


def normalize(x, w, name):
    return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])


def linear(x, w, name):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def run_blocks(x, w, mask=None) -> list[torch.Tensor]:
    """(B, L, D) -> the output of each of CLIP's residual blocks, (B, L, D) each."""
    outputs = []
    b, n, _ = x.shape
    for i in range(sum(key.endswith("in_proj_weight") for key in w)):
        block = f"transformer.resblocks.{i}"
        y = normalize(x, w, f"{block}.ln_1")
        y = F.linear(
            y, w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"]
        )
        q, k, v = y.view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, 64)
        a = q @ k.mT / q.shape[-1] ** 0.5  # by hand: short L is slow in torch's kernel
        a = a if mask is None else a + mask
        y = (a.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH)
        x = x + linear(y, w, f"{block}.attn.out_proj")
        y = linear(normalize(x, w, f"{block}.ln_2"), w, f"{block}.mlp.c_fc")
        y = F.silu(1.702 * y) / 1.702  # y sigmoid(1.702 y), CLIP's QuickGELU
        x = x + linear(y, w, f"{block}.mlp.c_proj")
        outputs.append(x)
    return outputs


def encode_image(w, images, kept) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 48, 48), patches to keep (B, K) -> (B, E), midway token (B, D)."""
    x = F.conv2d(images.bfloat16(), w["conv1.weight"], stride=PATCH).flatten(2).mT
    x = x + w["positional_embedding"][1:]
    x = x.gather(1, kept[..., None].expand(-1, -1, WIDTH))
    first = (w["class_embedding"] + w["positional_embedding"][0]).expand(len(x), 1, -1)
    outputs = run_blocks(normalize(torch.cat([first, x], 1), w, "ln_pre"), w)
    last = normalize(outputs[-1][:, 0], w, "ln_post")
    return (last @ w["proj"]).float(), outputs[MIDWAY][:, 0]


def encode_text(w, table, tokens) -> torch.Tensor:
    """(B, L) tokens, embedded by table (vocabulary, D) -> (B, E)."""
    x = F.embedding(tokens, table).bfloat16()
    x = x + w["positional_embedding"][: tokens.shape[1]]
    mask = torch.full((tokens.shape[1],) * 2, -math.inf, dtype=x.dtype).triu(1)
    x = normalize(run_blocks(x, w, mask)[-1], w, "ln_final")
    end = x[torch.arange(len(x)), tokens.argmax(1)]  # (B, D)
    return (end @ w["text_projection"]).float()


# --- What is seen, and what is to be said about it.


def augment(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, 64, 64) uint8 -> (B, 3, 48, 48), moved, recoloured, some as line art."""
    ink = 1 - images.float() / 255  # so that what moves in from outside is white
    lines, grey, shuffled, inverted = (torch.rand(len(ink)) < p for p in CHANCES)
    ink[lines] = draw_edges(ink[lines]).expand(-1, 3, -1, -1)
    ink[grey] = ink[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    ink[shuffled] = ink[shuffled][:, torch.randperm(3)]
    size = [len(ink), 3, PIXELS, PIXELS]
    grid = F.affine_grid(draw_moves(len(ink)), size, align_corners=False)
    ink = F.grid_sample(ink, grid, align_corners=False)
    ink[inverted] = 1 - ink[inverted]
    return (1 - ink - MEAN) / STD


def draw_edges(ink: torch.Tensor) -> torch.Tensor:
    """Sobel's gradient magnitude: outlines, for domains that are drawn that way."""
    ink = F.pad(ink.mean(1, keepdim=True), (1, 1, 1, 1))
    smooth, slope = torch.tensor([1.0, 2, 1]), torch.tensor([-1.0, 0, 1])
    kernels = torch.stack([smooth.outer(slope), slope.outer(smooth)])[:, None] / 4
    return (1.2 * F.conv2d(ink, kernels).norm(dim=1, keepdim=True)).clamp(max=1)


def draw_moves(b: int) -> torch.Tensor:
    """(B, 2, 3) from the new picture's coordinates to the old one's, -1 to 1."""
    angle = (torch.rand(b) - 0.5) * math.radians(28)
    zoom = torch.exp((torch.rand(2, b) - 0.5) * math.log(1.2))  # 10 % of aspect, ...
    zoom = zoom * torch.empty(b).uniform_(math.log(0.7), math.log(1.3)).exp()
    flip = torch.randint(2, (b,)) * 2 - 1
    x, y = (torch.rand(2, b) - 0.5) * 0.5  # ... an eighth of the width to each side
    cos, sin = angle.cos(), angle.sin()
    rows = [
        flip * cos / zoom[0],
        -sin / zoom[0],
        x,
        flip * sin / zoom[1],
        cos / zoom[1],
        y,
    ]
    return torch.stack(rows, 1).view(b, 2, 3)


def match(z, target, space) -> torch.Tensor:
    """Soft contrastive loss of z (B, E): find the unit targets (B, E) among others.

    The others are drawn from space, all that there is to say, rather than from the
    batch; targets near to the right one share its credit.
    """
    others = space[torch.randint(len(space), (CANDIDATES,))]
    among = torch.cat([target, others])  # (M, E)
    share = (SHARE * target @ among.T).softmax(1)
    return F.cross_entropy(SCALE * F.normalize(z, dim=1) @ among.T, share)


class ImageTask:
    """Drawings and what the teachers say: a caption's words, an ImageNet network."""

    name, batch, peak = "image", 256, 3e-3

    def __init__(self, model: CLIP, corpus: Corpus, words, sights):
        self.visual, self.corpus = model.visual, corpus
        self.words, self.sights = words, sights  # (T, E), (drawings with sights, E)
        self.sight = corpus.picture.cumsum(0) - 1  # drawing -> row of sights
        self.head = torch.nn.Linear(WIDTH, DIMENSIONS)  # thrown away in the end

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        head = {f"head.{name}": p for name, p in self.head.named_parameters()}
        return dict(self.visual.named_parameters()) | head

    def draw(self) -> torch.Tensor:
        weight = self.corpus.weight * ~self.corpus.held_out
        return torch.multinomial(weight, self.batch, replacement=True)

    def loss(self, i, done: float) -> torch.Tensor:
        """For drawings i (B,), at a share `done` of the training."""
        kept = torch.rand(len(i), PATCHES).argsort(1)
        kept = kept[:, :KEEP] if done < WHOLE else kept
        x = augment(self.corpus.images[i])
        z, midway = encode_image(cast(self.visual), x, kept)
        choice = torch.randint(self.corpus.choices.shape[1], (len(i),))
        words = self.words[self.corpus.choices[i, choice]]
        seen = self.corpus.picture[i]
        h = self.head(F.layer_norm(midway[seen].float(), (WIDTH,)))
        sights = self.sights[self.sight[i[seen]]]
        return match(z, words, self.words) + 0.5 * match(h, sights, self.sights)

    @torch.inference_mode()
    def check(self) -> str:
        """On held-out drawings as they are, and as line art."""
        held = self.corpus.held_out.nonzero()[:, 0]
        torch.manual_seed(0)
        words = self.words[self.corpus.choices[held, 0]]
        kept = torch.arange(PATCHES).expand(len(held), -1)
        ink = F.interpolate(1 - self.corpus.images[held] / 255, PIXELS, mode="area")
        report = []
        for style, drawn in [("plain", ink), ("lines", draw_edges(ink))]:
            x = (1 - drawn.expand(-1, 3, -1, -1) - MEAN) / STD
            z, _ = encode_image(cast(self.visual), x, kept)
            report.append(f"{style} {match(z, words, self.words):.3f}")
        return "held out: " + " ".join(report)


def tokenize(captions: list[str]) -> torch.Tensor:
    """(T, prefixes, TOKENS), each with every prefix.

    Like clip.tokenize, which would take minutes: it cleans every combination anew.
    """
    tokenizer = SimpleTokenizer()
    start, end = (tokenizer.encoder[f"<|{w}oftext|>"] for w in ["start", "end"])
    tokens = torch.zeros(len(captions), len(PREFIXES), TOKENS, dtype=torch.int)
    prefixes = [tokenizer.encode(prefix) for prefix in PREFIXES]
    for i, words in enumerate(map(tokenizer.encode, captions)):
        for j, prefix in enumerate(prefixes):
            row = [*[start, *prefix, *words][: TOKENS - 1], end]
            tokens[i, j, : len(row)] = torch.tensor(row)
    return tokens


class TextTask:
    """Captions under templates, and where the sentence encoder puts them."""

    name, batch, peak = "text", 384, 2e-3

    def __init__(self, model: CLIP, captions: list[str], words):
        self.model, self.words = model, words
        self.tokens = tokenize(captions)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        skip = ("visual.", "logit_scale")
        named = self.model.named_parameters()
        return {name: p for name, p in named if not name.startswith(skip)}

    def draw(self) -> torch.Tensor:
        return torch.randint(len(self.words), (self.batch,))

    def loss(self, i, done: float) -> torch.Tensor:
        tokens = self.tokens[i, torch.randint(len(PREFIXES), (len(i),))]
        z = self.encode(tokens)
        away = 1 - F.cosine_similarity(z, self.words[i]).mean()
        return away + 0.1 * match(z, self.words[i], self.words)

    def encode(self, tokens) -> torch.Tensor:
        w = self.parameters()
        table = w.pop("token_embedding.weight")  # most of the weights, few are used
        return encode_text({k: p.bfloat16() for k, p in w.items()}, table, tokens)

    @torch.inference_mode()
    def check(self) -> str:
        z = self.encode(self.tokens[::10, 0])
        cosine = F.cosine_similarity(z, self.words[::10]).mean()
        return f"cosine to the sentence encoder {cosine:.3f}"


# --- Training, stopping, going on.


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
    parser.add_argument("--text-minutes", type=float, default=6)
    parser.add_argument("--image-minutes", type=float, default=66)
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
