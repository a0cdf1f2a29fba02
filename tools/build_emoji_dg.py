"""Build EmojiDG: the same emoji drawn by four design houses, one house a domain.

    python tools/build_emoji_dg.py                # writes domainbed/assets/emoji_dg.zip

Sources: Fluent Emoji (Microsoft), Noto Emoji (Google) and Twemoji (Twitter) as packed
by Iconify, https://iconify.design; OpenMoji's black line drawings and its table of
subgroups, https://openmoji.org, which gives the classes. An emoji is in the data set
if all four houses drew it, so domains differ in style only, never in content.
A second run writes the same bytes.
"""

import argparse
import io
import zipfile
from collections import Counter
from pathlib import Path

from drawings import (
    install,
    plain_code,
    read_emoji,
    read_names,
    read_svgs,
    render,
    slug,
)
from PIL import Image
from tqdm import tqdm

PACKAGES = {
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/twemoji": "1.2.5",
    "openmoji": "17.0.0",
}
CLASSES = {  # class -> OpenMoji's subgroups
    "bird": ["animal-bird"],
    "building": ["place-building"],
    "clothing": ["clothing"],
    "dessert": ["food-sweet"],
    "drink": ["drink"],
    "face": ["face-smiling", "face-concerned", "face-neutral-skeptical"],
    "fruit": ["food-fruit"],
    "insect": ["animal-bug"],
    "mammal": ["animal-mammal"],
    "meal": ["food-prepared", "food-asian"],
    "musical_instrument": ["musical-instrument"],
    "plant": ["plant-flower", "plant-other"],
    "sea_animal": ["animal-marine"],
    "sports_equipment": ["sport"],
    "tool": ["tool"],
    "vegetable": ["food-vegetable"],
    "vehicle": ["transport-ground"],
}
SIZE = 128  # pixels; CLIP's 224 would double the archive and add no detail
LICENSES = {
    "fluent": """Fluent Emoji, (c) Microsoft Corporation, MIT License
https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE

Permission is hereby granted, free of charge, to any person obtaining a copy of this
software and associated documentation files (the "Software"), to deal in the Software
without restriction, including without limitation the rights to use, copy, modify,
merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to the following
conditions: The above copyright notice and this permission notice shall be included in
all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS",
WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN
NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR
OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
""",
    "noto": """Noto Emoji, Copyright Google Inc., Apache License 2.0
https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE
Licensed under the Apache License, Version 2.0; you may obtain a copy of the License at
https://www.apache.org/licenses/LICENSE-2.0
""",
    "openmoji": """All emojis designed by OpenMoji, https://openmoji.org,
the open-source emoji and icon project. License: CC BY-SA 4.0
https://creativecommons.org/licenses/by-sa/4.0/
The images under openmoji/ stay under CC BY-SA 4.0.
""",
    "twemoji": """Twemoji, Copyright Twitter, Inc. and other contributors.
Graphics licensed under CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
https://github.com/jdecked/twemoji
""",
}
CHANGES = f"Changed here: rendered on white at {SIZE} x {SIZE} pixels.\n"
EARLIEST = (1980, 1, 1, 0, 0, 0)  # zip's first date, so that builds compare equal


def read_houses(modules: Path, emoji: list[dict]) -> dict[str, dict[str, str]]:
    """House -> {OpenMoji's hexcode: SVG}, for the emoji each house drew."""
    iconify = modules / "@iconify-json"
    noto, twemoji = (read_names(iconify / house) for house in ["noto", "twemoji"])
    svgs = {h: read_svgs(iconify / h) for h in ["fluent-emoji", "noto", "twemoji"]}
    houses = {house: {} for house in ["fluent", "noto", "openmoji", "twemoji"]}
    for row in emoji:
        code = plain_code(row["hexcode"])
        # Fluent's package has no table of code points, but shares names with others.
        names = [slug(row["annotation"]), noto.get(code), twemoji.get(code)]
        found = {
            "fluent": next(filter(None, map(svgs["fluent-emoji"].get, names)), None),
            "noto": svgs["noto"].get(noto.get(code)),
            "openmoji": read_line_art(modules, row["hexcode"]),
            "twemoji": svgs["twemoji"].get(twemoji.get(code)),
        }
        for house, svg in found.items():
            if svg:
                houses[house][row["hexcode"]] = svg
    return houses


def read_line_art(modules: Path, hexcode: str) -> str | None:
    path = modules / "openmoji" / "black" / "svg" / f"{hexcode}.svg"
    return path.read_text(encoding="utf-8") if path.exists() else None


def encode(image: Image.Image) -> bytes:
    """Lossless WebP: 30 % smaller than optimised PNG on these drawings.

    Method 6 at quality 100 saves another 1 % and takes 30 times as long.
    """
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=80, method=4)
    return buffer.getvalue()


def collect_entries(modules: Path) -> dict[str, bytes]:
    """Path in the archive -> contents."""
    class_of = {group: name for name, groups in CLASSES.items() for group in groups}
    emoji = read_emoji(modules / "openmoji")
    emoji = [row for row in emoji if row["subgroups"] in class_of]
    houses = read_houses(modules, emoji)
    shared = [r for r in emoji if all(r["hexcode"] in svgs for svgs in houses.values())]
    entries = {f"LICENSE-{h}.txt": (t + CHANGES).encode() for h, t in LICENSES.items()}
    for row in tqdm(shared, desc="emoji"):
        name = f"{row['hexcode']}_{slug(row['annotation'])}.webp"
        for house, svgs in houses.items():
            image = render(svgs[row["hexcode"]], SIZE)
            entries[f"{house}/{class_of[row['subgroups']]}/{name}"] = encode(image)
    return entries


def write_archive(entries: dict[str, bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, EARLIEST)
            info.external_attr = 0o644 << 16
            archive.writestr(info, entries[name])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    assets = Path(__file__).resolve().parents[1] / "domainbed" / "assets"
    parser.add_argument("--output", type=Path, default=assets / "emoji_dg.zip")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/emoji")
    args = parser.parse_args(argv)

    entries = collect_entries(install(PACKAGES, args.cache))
    write_archive(entries, args.output)
    counts = Counter(tuple(name.split("/")[:2]) for name in entries if "/" in name)
    for (domain, label), count in sorted(counts.items()):
        print(domain, label, count)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
