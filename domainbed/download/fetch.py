"""Files from the web: a cut one is resumed, and one is in its place only when whole.

While it grows a file is `NAME.part`; `NAME.part.json` beside it says which version it
is of (the server's validator and the length), so that a changed file starts anew.
"""

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

from tqdm import tqdm

from domainbed.lib.errors import InputError

CHUNK = 2**18  # bytes
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 20  # connections per file; one that brings nothing ends it at once
HUB = "https://huggingface.co"  # HF_ENDPOINT names another
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
PAGE = "a web page came instead of the file (a quota? a sign-in?)"


def fetch(url: str, to: Path) -> Path:
    """`to`, the whole file at `url`; what an earlier call got is not got again."""
    if to.exists():
        return to
    part = to.with_name(f"{to.name}.part")
    for attempt in range(ATTEMPTS):
        before = size(part)
        try:
            receive(url, part)
            part.rename(to)
            note_of(part).unlink(missing_ok=True)
            return to
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            if size(part) <= before or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def receive(url: str, part: Path, behind_page: bool = False) -> None:
    """Append to `part` what it lacks; ConnectionError if the answer ends early."""
    note = read_note(part)
    done = size(part) if note else 0
    if note and done == note["length"]:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "domainbed"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if note["validator"]:
            request.add_header("If-Range", note["validator"])
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        start_anew(part)  # the file has become shorter than what we hold
        return receive(url, part, behind_page)
    with answer:
        if answer.headers.get_content_type() == "text/html":
            if behind_page or not url.startswith(DRIVE):
                raise InputError(PAGE)
            return receive(link_behind(answer), part, behind_page=True)
        length = whole_length(answer)
        if answer.status == 206 and length != note["length"]:
            start_anew(part)
            return receive(url, part, behind_page)
        if answer.status != 206:
            done = 0
        write_note(part, answer, length)
        append(answer, part, done, length)


def append(
    answer: http.client.HTTPResponse, part: Path, done: int, length: int | None
) -> None:
    """The answer's bytes after the first `done` of the file, with a progress bar."""
    name = part.name.removesuffix(".part")
    with (
        open(part, "ab" if done else "wb") as file,
        tqdm(
            desc=name,
            total=length,
            initial=done,
            unit="B",
            unit_scale=True,
            disable=None,  # shown on terminals only
        ) as bar,
    ):
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        received = file.tell()
    if length is not None and received < length:
        raise ConnectionError(f"{name} was cut at {received} of {length} bytes")


def size(part: Path) -> int:
    """How many bytes are there already."""
    return part.stat().st_size if part.exists() else 0


def note_of(part: Path) -> Path:
    """The file that says what `part` is a part of."""
    return part.with_name(f"{part.name}.json")


def read_note(part: Path) -> dict | None:
    """The note beside `part`; None if there is none that helps to resume."""
    try:
        note = json.loads(note_of(part).read_text())
        return note if note["validator"] or note["length"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_note(
    part: Path, answer: http.client.HTTPResponse, length: int | None
) -> None:
    """Note which version of the file is coming: by strong ETag, or by date."""
    validator = answer.headers.get("ETag", "")
    if not validator.startswith('"'):  # a weak ETag cannot vouch for bytes
        validator = answer.headers.get("Last-Modified", "")
    note_of(part).write_text(json.dumps({"validator": validator, "length": length}))


def start_anew(part: Path) -> None:
    """Forget what was received."""
    part.unlink(missing_ok=True)
    note_of(part).unlink(missing_ok=True)


def whole_length(answer: http.client.HTTPResponse) -> int | None:
    """The file's length in bytes, not the answer's; None if the server does not say."""
    if answer.status == 206:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


class Form(HTMLParser):
    """The first form's address with its hidden fields, as Drive asks before sending."""

    def __init__(self):
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        if tag == "form" and not self.action:
            self.action = values.get("action", "")
        if tag == "input" and values.get("type") == "hidden":
            self.fields[values.get("name", "")] = values.get("value", "")


def link_behind(answer: http.client.HTTPResponse) -> str:
    """Where Drive's "too large to scan" page leads; InputError for any other page."""
    form = Form()
    form.feed(answer.read(2**20).decode(errors="replace"))
    action = urllib.parse.urljoin(answer.url, form.action)
    if "id" not in form.fields or not action.startswith(("https:", "http:")):
        raise InputError(PAGE)
    return f"{action}?{urllib.parse.urlencode(form.fields)}"


def hub_files(repository: str) -> dict[str, str]:
    """{name: address} of the parquet files of a dataset on the Hugging Face hub."""
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    listing = f"{hub}/api/datasets/{repository}/tree/main?recursive=true"
    request = urllib.request.Request(listing, headers={"User-Agent": "domainbed"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        try:
            paths = [entry["path"] for entry in json.load(answer)]
        except (LookupError, TypeError) as error:
            raise InputError("its list of files is not understood") from error
    files = {
        path.replace("/", "-"): f"{hub}/datasets/{repository}/resolve/main/{path}"
        for path in paths
        if path.endswith(".parquet")
    }
    if not files:
        raise InputError("it holds no parquet files")
    return files
