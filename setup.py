from itertools import chain
from pathlib import Path

from setuptools import find_packages, setup

version = Path("domainbed/__init__.py").read_text().split('__version__ = "')[1]
EXTRAS = {
    "download": ["pyarrow"],  # for the parquet files of the Hugging Face hub
    # bitsandbytes trains 4-bit layers on a CPU from 0.48 on; peft brings accelerate.
    "qlora": ["transformers>=5", "peft>=0.17", "bitsandbytes>=0.48"],
    "ray": ["ray>=2.40"],
    "report": ["jinja2", "matplotlib>=3.8", "scikit-posthocs>=0.11"],
    "slurm": ["submitit>=1.5"],
    "timm": ["timm>=1.0"],
    "wilds": ["wilds>=2.0"],
}
TESTED = ("download", "qlora", "report", "slurm", "timm")
FOR_TESTS = ["pytest>=8", "pytest-xdist", "ruff", "hypothesis", "selenium>=4.11"]

setup(
    name="domainbed-lfa",
    version=version.split('"')[0],
    description="DomainBed, rebuilt for adapting CLIP to domains it has never seen",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)),
    ],
    license="MIT",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["domainbed", "domainbed.*"]), "domainbed.sweeps"],
    package_dir={"domainbed.sweeps": "sweeps"},
    package_data={
        "domainbed": ["assets/*"],
        "domainbed.sweeps": ["*.txt", "published/*"],
    },
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "clip-anytorch",
        "setuptools>=77.0.3,<81",  # clip-anytorch imports pkg_resources
        "numpy",
        "pandas>=2.1",
        "tensorboard",
        "pillow",
        "psutil",
        "tqdm",
        "filelock>=3.24",  # fallback_to_soft
        "safetensors",
        "scipy>=1.15",
    ],
    extras_require={
        **EXTRAS,
        "all": [*chain(*EXTRAS.values())],
        "test": [*FOR_TESTS, *chain(*(EXTRAS[e] for e in TESTED))],
    },
)
