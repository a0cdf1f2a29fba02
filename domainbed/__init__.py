"""DomainBed, rebuilt for adapting CLIP to domains it has never seen."""

import os

__version__ = "0.1.0"

# Threads that spin while they wait make torch many times slower as soon as two runs
# share the cores. It has to be said before torch starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
