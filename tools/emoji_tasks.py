"""What the emoji CLIP's towers learn: from drawings and captions to losses.

Shapes: B batch, L tokens, D width, E embedding, M candidates in a loss, T captions.
"""

import math

import torch
import torch.nn.functional as F
from clip.model import CLIP
from clip.simple_tokenizer import SimpleTokenizer
from drawing_corpus import Corpus
from emoji_towers import (
    EMBEDDING,
    PATCHES,
    PIXELS,
    WIDTH,
    cast,
    encode_image,
    encode_text,
)

CHANCES = 0.25, 0.2, 0.2, 0.05  # of line art, grey, swapped channels, negatives
KEEP = 28  # patches seen, of 36, ...
WHOLE = 0.8  # ... until this share of the time has passed
SCALE = 14  # of cosines in training
SHARE = 20  # of cosines between targets: near captions share the credit
CANDIDATES = 4096  # drawn for each step's losses
TOKENS = 16  # captions are short; the causal mask makes later positions irrelevant
PREFIXES = ["a photo of a", "a drawing of a", "an icon of a", "a picture of the", ""]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's pixels
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


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
        self.head = torch.nn.Linear(WIDTH, EMBEDDING)  # thrown away in the end

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
