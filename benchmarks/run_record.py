"""What benchmarks on one machine write beside their rows: device, versions and date."""

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch


def record_of(rows: Sequence[Any]) -> dict[str, Any]:
    """Give rows, which are dataclasses, as plain JSON values with where and when they were made."""
    import transformers

    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "rows": [asdict(row) for row in rows],
    }
