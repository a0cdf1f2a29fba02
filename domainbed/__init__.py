"""DomainBed, rebuilt for adapting CLIP to domains it has never seen."""

__version__ = "0.1.0"
