"""Ray's own offline check of a cluster file.

Ray keeps it private, so it is imported under guard, and a test holds that the names still exist.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator
from typing import Any

from dllm_sweep.cluster_lints.findings import Found


def refused_by_ray(data: Any) -> Iterator[Found]:
    """What `ray up` itself would refuse before it asks the cloud for anything."""
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError:
        problem = "Ray's own check is missing: Ray is not installed here, or is another version"
        yield Found((), problem, 'pip install "dllm-sweep[worker]"')
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _silent_logging():
            validate_config(prepare_config(copy.deepcopy(data)))
    except Exception as error:  # Ray raises whatever its code stumbles over.
        place = tuple(getattr(error, "absolute_path", ()))
        yield Found(place, f"Ray refuses the file: {_reason(error, said)}", "correct it")


def _reason(error: Exception, said: io.StringIO) -> str:
    message = str(getattr(error, "message", "") or error) or said.getvalue()
    return f"{type(error).__name__}: {' '.join(message.split())}"


@contextlib.contextmanager
def _silent_logging() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(previous)
