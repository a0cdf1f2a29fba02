"""How much memory a process may still take."""

import psutil


def free_bytes(device: str = "cpu") -> int:
    """Of that GPU, or of this machine without touching what it swaps."""
    if device.startswith("cuda"):
        import torch  # which launchers, that ask of the machine, do without

        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
