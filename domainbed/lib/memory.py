"""How much memory a process may still take."""

import psutil
import torch


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Of that GPU, or of this machine without touching what it swaps."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
