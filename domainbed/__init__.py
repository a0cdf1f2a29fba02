"""DomainBed, rebuilt for adapting CLIP to domains it has never seen."""

import os

__version__ = "0.1.0"

# Threads that spin while they wait make torch many times slower as soon as two runs
# share the cores. It has to be said before torch starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    import torchvision as _  # noqa: F401
except RuntimeError as error:  # "operator torchvision::nms does not exist"
    raise ImportError(
        "torch and torchvision do not fit together: one was built for CPU only, the "
        "other was not. Install both from the same place: "
        "pip install --force-reinstall torch torchvision"
    ) from error
