"""What tests of the report share: a page, read."""

import re
from html.parser import HTMLParser

from domainbed.scripts import report


class Page(HTMLParser):
    """Its tags, its tables as rows of text, and the text outside style and script."""

    VOID = ("meta", "br", "link", "input")

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.tags = html, [], []
        self.tables, self.texts, self.scripts = [], [], 0
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {*self.open} & {"td", "th"}:
            self.tables[-1][-1][-1] += data
        if not {*self.open} & {"style", "script"}:
            self.texts.append(data.strip())

    @property
    def text(self):
        return " ".join(filter(None, self.texts))

    def table(self, *columns):
        """The first table with those columns among its own, a dict in each row."""
        for head, *rows in self.tables:
            if {*columns} <= {*head}:
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f"no table with {columns}")

    @property
    def headings(self):
        return re.findall("<h[23]>(.*?)</h[23]>", self.html)


def make(root, output=None, *flags):
    output = output or root.parent / "report.html"
    report.main(["--input_dir", str(root), "--output", str(output), *flags])
    return Page(output.read_text(encoding="utf-8"))
