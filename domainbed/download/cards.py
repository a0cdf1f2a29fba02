"""Cards: where each dataset comes from, in which shape, and how much of it there is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from domainbed.download import fetch, layout
from domainbed.lib.optional import require


@dataclass(frozen=True)
class Mirror:
    """One place that has a dataset: hf a repository, url a folder, gdrive an id."""

    source: str
    at: str
    files: tuple[str, ...] = ()  # under the address; the hub lists its own

    def __str__(self) -> str:
        where = {"hf": "the Hugging Face hub's", "gdrive": "Google Drive's"}
        return f"{where.get(self.source, '')} {self.at}".strip()

    def fetch(self, folder: Path) -> list[Path]:
        """Its files, whole, in the folder."""
        if self.source == "hf":
            require("pyarrow.parquet", "download")  # before gigabytes, not after
            urls = fetch.hub_files(self.at)
        elif self.source == "gdrive":
            urls = {self.files[0]: fetch.DRIVE + self.at}
        else:
            urls = {name.split("/")[-1]: f"{self.at}/{name}" for name in self.files}
        return [fetch.fetch(url, folder / name) for name, url in urls.items()]


@dataclass(frozen=True)
class Card:
    """Where a dataset comes from, and how its archives become its layout."""

    website: str
    counts: dict[str, int]  # pictures of each domain, named as its folder
    mirrors: tuple[Mirror, ...]
    arrange: Callable[[Path, Path, Iterable[str]], None] = layout.arrange
    exact: bool = True  # a number that differs from the published one is an error
    hint: str = ""  # at the end of the sentence about such a number


DOMAIN_NET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
CLEANED = ("clipart", "painting")  # the authors' later zips, in a folder of their own
CARDS = {
    "VLCS": Card(
        "http://www.eecs.qmul.ac.uk/~dl307/project_iccv2017",
        {"Caltech101": 1415, "LabelMe": 2656, "SUN09": 3282, "VOC2007": 3376},
        (Mirror("gdrive", "1skwblH1_okBwxWxmRsp9_qi15hyPpxg8", ("VLCS.tar.gz",)),),
    ),
    "PACS": Card(
        "https://sketchx.eecs.qmul.ac.uk/downloads",
        {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
        (
            Mirror("hf", "flwrlabs/pacs"),
            Mirror("gdrive", "1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd", ("PACS.zip",)),
        ),
    ),
    "OfficeHome": Card(
        "http://hemanthdv.org/OfficeHome-Dataset",
        {"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357},
        (
            Mirror("hf", "flwrlabs/office-home"),
            Mirror("gdrive", "1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC", ("office_home.zip",)),
        ),
    ),
    "TerraIncognita": Card(
        "https://lila.science/datasets/caltech-camera-traps",
        {
            "location_100": 4741,
            "location_38": 9736,
            "location_43": 3970,
            "location_46": 5883,
        },
        (
            Mirror(
                "url",
                "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps",
                ("eccv_18_annotations.tar.gz", "eccv_18_all_images_sm.tar.gz"),
            ),
        ),
        layout.arrange_terra_incognita,
        exact=False,  # DomainBed's numbers are of other annotations than these archives
    ),
    "DomainNet": Card(
        "http://ai.bu.edu/M3SDA",
        {
            "clipart": 48129,
            "infograph": 51605,
            "painting": 72266,
            "quickdraw": 172500,
            "real": 172947,
            "sketch": 69128,
        },
        (
            Mirror("hf", "wltjr1007/DomainNet"),  # cleaned already: 586,575 pictures
            Mirror(
                "url",
                "http://csr.bu.edu/ftp/visda/2019/multi-source",
                (
                    *(
                        f"domainnet/txt/{domain}_{part}.txt"
                        for domain in DOMAIN_NET
                        for part in ("train", "test")
                    ),
                    *(
                        f"{'groundtruth/' * (domain in CLEANED)}{domain}.zip"
                        for domain in DOMAIN_NET
                    ),
                ),
            ),
        ),
        layout.arrange_domain_net,
        hint=" The published numbers are without the duplicates: unpack the archives "
        "from a folder (--source) that holds domain_net_duplicates.txt, too, or the "
        "authors' lists clipart_train.txt, clipart_test.txt and so on.",
    ),
}
