"""torchvision, or what to do where it does not fit torch."""

try:
    import torchvision
except RuntimeError as error:  # "operator torchvision::nms does not exist"
    raise ImportError(
        "torch and torchvision do not fit together: one was built for CPU only, the "
        "other was not. Install both from the same place: "
        "pip install --force-reinstall torch torchvision"
    ) from error

__all__ = ["torchvision"]
