"""Which machines of the big clouds have how many GPUs: facts that Ray does not check offline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dllm_sweep.cluster_lints.findings import inside, integer, mapping, sequence, text

_ONE_TO_EIGHT = {
    "xlarge": 1,
    "2xlarge": 1,
    "4xlarge": 1,
    "8xlarge": 1,
    "16xlarge": 1,
    "12xlarge": 4,
    "24xlarge": 4,
    "48xlarge": 8,
}
_AWS_GPUS: Mapping[str, Mapping[str, int]] = {
    "g4dn": {
        "xlarge": 1,
        "2xlarge": 1,
        "4xlarge": 1,
        "8xlarge": 1,
        "16xlarge": 1,
        "12xlarge": 4,
        "metal": 8,
    },
    "g5": _ONE_TO_EIGHT,
    "g6": _ONE_TO_EIGHT,
    "g6e": _ONE_TO_EIGHT,
    "gr6": {"4xlarge": 1, "8xlarge": 1},
    "g7e": {
        "2xlarge": 1,
        "4xlarge": 1,
        "8xlarge": 1,
        "12xlarge": 2,
        "24xlarge": 4,
        "48xlarge": 8,
    },
    "p3": {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8},
    "p3dn": {"24xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"4xlarge": 1, "48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
    "p6-b200": {"48xlarge": 8},
    "p6-b300": {"48xlarge": 8},
}
_AWS_MODELS = {
    "g4dn": "t4",
    "g5": "a10g",
    "g6": "l4",
    "gr6": "l4",
    "g6e": "l40s",
    "p3": "v100",
    "p3dn": "v100",
    "p4d": "a100",
    "p4de": "a100",
    "p5": "h100",
    "p5e": "h200",
    "p5en": "h200",
    "p6-b200": "b200",
    "p6-b300": "b300",
}
_AWS_OTHER_ACCELERATORS = {"g4ad", "g5g", "inf1", "inf2", "trn1", "trn1n", "trn2", "dl1", "dl2q"}
_AWS_NAME = re.compile(
    r"(?P<family>[a-z]+\d+[a-z]*(?:-[a-z0-9]+)?)\."
    r"(?P<size>nano|micro|small|medium|large|\d*xlarge|metal(?:-\d+xl)?)"
)
_GCP_NAME = re.compile(r"[a-z]\d[a-z]?-[a-z]+-?[a-z0-9]+(-[a-z0-9]+)?|custom-\d+-\d+")
_GCP_GPUS = {"4": 1, "8": 1, "12": 1, "16": 1, "32": 1, "24": 2, "48": 4, "96": 8}
_AZURE_NAME = re.compile(r"Standard_[A-Z]+\d+[a-z]*(-\d+[a-z]*)?(_[A-Za-z0-9]+)*")
_AZURE_GPUS = {
    "Standard_NC4as_T4_v3": 1,
    "Standard_NC8as_T4_v3": 1,
    "Standard_NC16as_T4_v3": 1,
    "Standard_NC64as_T4_v3": 4,
    "Standard_NC24ads_A100_v4": 1,
    "Standard_NC48ads_A100_v4": 2,
    "Standard_NC96ads_A100_v4": 4,
    "Standard_NC40ads_H100_v5": 1,
    "Standard_NC80adis_H100_v5": 2,
    "Standard_NV36ads_A10_v5": 1,
    "Standard_NV72ads_A10_v5": 2,
    "Standard_ND96asr_v4": 8,
    "Standard_ND96amsr_A100_v4": 8,
    "Standard_ND96isr_H100_v5": 8,
    "Standard_ND96isr_H200_v5": 8,
}


@dataclass(frozen=True)
class Machine:
    """A cloud's machine as far as its name tells.

    Attributes:
        name: As the file writes it.
        exists: False if no machine of that cloud can have this name.
        gpus: CUDA GPUs; None if the name does not tell.
        cores: Virtual cores; None if the name does not tell.
        cuda: False for accelerators that are no CUDA GPUs on x86.
        model: The GPUs' model in small letters; empty if the name does not tell.
    """

    name: str
    exists: bool = True
    gpus: int | None = None
    cores: int | None = None
    cuda: bool = True
    model: str = ""


def machine_of(provider: str, node_config: Mapping[str, Any]) -> Machine | None:
    """The machine that a node type asks for; None if the file or the cloud does not name one."""
    if provider == "aws":
        return _aws(text(node_config.get("InstanceType")))
    if provider == "gcp":
        return _gcp(text(node_config.get("machineType")), node_config)
    if provider == "azure":
        return _azure(text(inside(node_config, "azure_arm_parameters", "vmSize")))
    return None


def _aws(name: str) -> Machine | None:
    if not name:
        return None
    found = _AWS_NAME.fullmatch(name)
    if found is None:
        return Machine(name, exists=False)
    family, size = found["family"], found["size"]
    cores = _aws_cores(size)
    if family in _AWS_OTHER_ACCELERATORS:
        return Machine(name, gpus=0, cores=cores, cuda=False)
    if family in _AWS_GPUS:
        gpus = _AWS_GPUS[family].get(size)
        model = _AWS_MODELS.get(family, "")
        return Machine(name, exists=gpus is not None, gpus=gpus, cores=cores, model=model)
    # No family of theirs with another letter in front has GPUs.
    return Machine(name, gpus=None if family[0] in "gp" else 0, cores=cores)


def _aws_cores(size: str) -> int | None:
    if size.endswith("xlarge"):
        return 4 * int(size.removesuffix("xlarge") or 1)
    return 2 if size == "large" else None


def _gcp(name: str, node_config: Mapping[str, Any]) -> Machine | None:
    if not name:
        return None
    name = name.rsplit("/", 1)[-1]
    attached = sum(
        integer(mapping(entry).get("acceleratorCount")) or 0
        for entry in sequence(node_config.get("guestAccelerators"))
    )
    return Machine(
        name, exists=_GCP_NAME.fullmatch(name) is not None, gpus=attached or _gcp_gpus(name)
    )


def _gcp_gpus(name: str) -> int | None:
    if found := re.fullmatch(r"g2-standard-(\d+)", name):
        return _GCP_GPUS.get(found[1])
    if found := re.fullmatch(r"a[234]-[a-z]+gpu-(\d+)g(-nolssd)?", name):
        return int(found[1])
    return 0 if name.split("-")[0] in ("n1", "n2", "n2d", "e2", "c3", "c2", "n4", "c4") else None


def _azure(name: str) -> Machine | None:
    if not name:
        return None
    gpus = _AZURE_GPUS.get(name)
    if gpus is None and re.match(r"Standard_[BDEFM]", name):
        gpus = 0
    return Machine(name, exists=_AZURE_NAME.fullmatch(name) is not None, gpus=gpus)
