"""What the machine gives this process."""

import os


def available_cores() -> int:
    """Cores that this process may use, which a scheduler may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
