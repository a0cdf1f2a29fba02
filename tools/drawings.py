"""Vector drawings from npm packages: fetch, read, render.

Iconify publishes each emoji or icon set as JSON: the inside of every SVG by name, and
(for some emoji sets) a table from code points to names.
https://iconify.design/docs/types/iconify-json.html
OpenMoji's package holds SVG files named by code points and a table that describes them.
https://openmoji.org
"""

import io
import json
import re
import subprocess
from pathlib import Path

import resvg_py
from PIL import Image


def install(packages: dict[str, str], cache: Path) -> Path:
    """Install npm packages, name -> version, unless present; returns node_modules."""
    modules = Path(cache) / "node_modules"
    missing = [
        f"{name}@{version}"
        for name, version in packages.items()
        if installed_version(modules / name) != version
    ]
    if missing:
        modules.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(cache), "--ignore-scripts"]
        subprocess.run([*command, *missing], check=True)
    return modules


def installed_version(package: Path) -> str | None:
    manifest = package / "package.json"
    return json.loads(manifest.read_text())["version"] if manifest.exists() else None


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_emoji(openmoji: Path) -> list[dict]:
    """OpenMoji's rows for standard emoji, without skin-tone variants and extras."""
    rows = read_json(openmoji / "data" / "openmoji.json")
    return [
        row
        for row in rows
        if not row["skintone"] and not row["group"].startswith("extras")
    ]


def read_svgs(package: Path) -> dict[str, str]:
    """An Iconify set's drawings, name -> SVG, each centred in a square.

    Aliases are left out: they are second names, or flips, of drawings already here.
    """
    icons = read_json(package / "icons.json")
    default = {"left": 0, "top": 0, "width": 16, "height": 16}
    default |= {key: icons[key] for key in default if key in icons}
    return {
        name: square_svg(icon["body"], **{k: icon.get(k, default[k]) for k in default})
        for name, icon in icons["icons"].items()
    }


def square_svg(body: str, left: float, top: float, width: float, height: float) -> str:
    side = max(width, height)
    x, y = left - (side - width) / 2, top - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{x} {y} {side} {side}">{body}</svg>'
    )


def read_names(package: Path) -> dict[str, str]:
    """An Iconify set's table code points -> drawing's name, aliases resolved."""
    icons = read_json(package / "icons.json")
    parent = {k: a["parent"] for k, a in icons.get("aliases", {}).items()}
    table = read_json(package / "chars.json")
    return {plain_code(code): parent.get(name, name) for code, name in table.items()}


def plain_code(code: str) -> str:
    """Lower case and without the variation selector, which sets use as they like."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def slug(text: str) -> str:
    """'Mrs. Claus' -> 'mrs-claus', the way Iconify names drawings."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "")).strip("-")


def render(svg: str, size: int) -> Image.Image:
    """The drawing on white, (size, size) RGB; black where it has no colour."""
    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=size,
        height=size,
        background="#ffffff",
        skip_system_fonts=True,  # the same pixels on every machine
    )
    return Image.open(io.BytesIO(png)).convert("RGB")
