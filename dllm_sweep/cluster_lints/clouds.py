"""Lints about what a cloud is asked for: Ray hands `node_config` on unseen."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dllm_sweep.cluster_lints.findings import Found, inside, integer, mapping, sequence, text
from dllm_sweep.cluster_lints.ray_file import NodeType, RayFile
from dllm_sweep.cluster_lints.shell import installs
from dllm_sweep.errors import suggestion
from dllm_sweep.yaml_places import Place


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_AWS_KEYS = _names(
    "BlockDeviceMappings CapacityReservationSpecification CpuOptions CreditSpecification"
    " DisableApiStop DisableApiTermination EbsOptimized EnclaveOptions HibernationOptions"
    " IamInstanceProfile ImageId InstanceInitiatedShutdownBehavior InstanceMarketOptions"
    " InstanceType Ipv6AddressCount Ipv6Addresses KernelId KeyName LaunchTemplate"
    " LicenseSpecifications MaintenanceOptions MetadataOptions Monitoring NetworkInterfaces"
    " Placement PrivateDnsNameOptions PrivateIpAddress RamdiskId SecurityGroupIds"
    " SecurityGroups SubnetId SubnetIds TagSpecifications UserData"
)
_GCP_KEYS = _names(
    "acceleratorType canIpForward confidentialInstanceConfig deletionProtection description"
    " disks guestAccelerators hostname labels machineType metadata minCpuPlatform name"
    " networkInterfaces networkPerformanceConfig reservationAffinity resourcePolicies"
    " runtimeVersion scheduling schedulingConfig serviceAccounts shieldedInstanceConfig"
    " sourceInstanceTemplate sourceMachineImage tags"
)
_AZURE_KEYS = frozenset({"azure_arm_parameters"})
_KEYS = {"aws": _AWS_KEYS, "gcp": _GCP_KEYS, "azure": _AZURE_KEYS}
_MARKETS = {"spot", "capacity-block"}
_SPOT_OPTIONS = _names(
    "MaxPrice SpotInstanceType BlockDurationMinutes ValidUntil InstanceInterruptionBehavior"
)
_AWS_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_AMI = re.compile(r"ami-[0-9a-f]{8}([0-9a-f]{9})?|resolve:ssm:/\S+")
_SMALLEST_DISK_GB = 100
_ROOT_DISKS = {"/dev/sda1", "/dev/xvda"}
_EBS_KEYS = _names(
    "DeleteOnTermination Encrypted Iops KmsKeyId OutpostArn SnapshotId Throughput"
    " VolumeInitializationRate VolumeSize VolumeType"
)
_VOLUME_TYPES = {"gp2", "gp3", "io1", "io2", "standard"}
_LISTS = {"BlockDeviceMappings", "NetworkInterfaces", "SecurityGroupIds", "SubnetIds"}
_GPU_LABELS = {"gpu", "gpu_type", "gpu-type", "accelerator", "accelerator-type"}
_LIBRARIES = {"aws": "boto3", "gcp": "google-api-python-client", "azure": "azure-mgmt-compute"}
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def unknown_node_config(cluster: RayFile) -> Iterator[Found]:
    """A key that the cloud does not know; it refuses the machine then."""
    known = _KEYS.get(cluster.provider)
    for kind in cluster.types if known else ():
        for key in kind.node_config:
            if key not in (known or ()):
                near = suggestion(str(key), sorted(known or ())).split(" (there are")[0]
                problem = f"{cluster.provider} knows no {key!r}{near}"
                yield Found(kind.place("node_config", key), problem, "correct or drop it")


def node_config_values(cluster: RayFile) -> Iterator[Found]:
    """Values that AWS refuses: a text for a list, a disk of a kind that there is not."""
    for kind in cluster.types if cluster.provider == "aws" else ():
        for key in sorted(_LISTS & set(kind.node_config)):
            if not isinstance(kind.node_config[key], list):
                place = kind.place("node_config", key)
                yield Found(place, f"{key} is a list", "write it as [...]")
        for index, entry in enumerate(sequence(kind.node_config.get("BlockDeviceMappings"))):
            yield from _disk(kind.place("node_config", "BlockDeviceMappings", index), entry)


def _disk(place: Place, entry: object) -> Iterator[Found]:
    disk = mapping(mapping(entry).get("Ebs"))
    for key in sorted(set(map(str, disk)) - _EBS_KEYS):
        yield Found((*place, "Ebs", key), f"AWS knows no {key!r} here", "correct or drop it")
    if str(disk.get("VolumeType", "gp3")) not in _VOLUME_TYPES:
        problem = f"no machine starts from a disk of type {disk['VolumeType']!r}"
        yield Found((*place, "Ebs", "VolumeType"), problem, "write gp3")


def no_cloud_library(cluster: RayFile) -> Iterator[Found]:
    """A head without the library with which it asks the cloud for workers."""
    library = _LIBRARIES.get(cluster.provider)
    if library is None or any(True for _ in cluster.images()):
        return
    _, _, commands = next(cluster.setups())
    packages = [p for c in commands for i in installs(c.text) for p in i.packages]
    if not any(package.startswith(library) for package in packages):
        problem = f"the head cannot ask for workers without {library}"
        fix = f"install {library}==VERSION there, into the environment that runs Ray"
        yield Found(("head_setup_commands",), problem, fix)


def unknown_machine(cluster: RayFile) -> Iterator[Found]:
    """A machine that the cloud does not have, or none at all."""
    for kind in cluster.types:
        machine = kind.machine
        key = {"aws": "InstanceType", "gcp": "machineType"}.get(cluster.provider, "vmSize")
        if machine is None and cluster.provider in _KEYS and "LaunchTemplate" not in kind.data:
            place = kind.place("node_config")
            yield Found(place, "no machine is named", f"add {key}")
        elif machine is not None and not machine.exists:
            place = kind.place("node_config", key)
            yield Found(place, f"{cluster.provider} has no {machine.name!r}", "correct the name")
        elif machine is not None and not machine.cuda:
            problem = f"{machine.name} has no CUDA GPU on x86"
            yield Found(
                kind.place("node_config", key), problem, "take a machine with an NVIDIA GPU"
            )


def default_image(cluster: RayFile) -> Iterator[Found]:
    """A machine image that is left out or is no image."""
    if cluster.provider != "aws":
        return
    for kind in cluster.types:
        image = text(kind.node_config.get("ImageId"))
        if not image or image.lower() == "latest_dlami":
            problem = "Ray then takes Ubuntu 18.04, too old for today's PyTorch and drivers"
            yield Found(kind.place("node_config"), problem, "add ImageId: Ubuntu 22.04 or newer")
        elif not _AMI.fullmatch(image):
            problem = f"{image!r} is no machine image"
            yield Found(kind.place("node_config", "ImageId"), problem, "write ami-...")


def spot_options(cluster: RayFile) -> Iterator[Found]:
    """Spot options that AWS refuses, or with which machines come back on their own."""
    for kind in cluster.types:
        if cluster.provider == "aws" and "InstanceMarketOptions" in kind.node_config:
            yield from _spot_options(kind)


def _spot_options(kind: NodeType) -> Iterator[Found]:
    place = kind.place("node_config", "InstanceMarketOptions")
    options = mapping(kind.node_config["InstanceMarketOptions"])
    market = options.get("MarketType")
    if text(market) not in _MARKETS:
        yield Found(place, f"AWS knows no market {market!r}", "write MarketType: spot")
    details = mapping(options.get("SpotOptions"))
    unknown = (set(options) - {"MarketType", "SpotOptions"}) | (set(details) - _SPOT_OPTIONS)
    for key in sorted(map(str, unknown)):
        yield Found(place, f"AWS knows no {key!r} here", "correct or drop it")
    if not isinstance(details.get("MaxPrice", ""), str):
        yield Found(place, "AWS takes a price as text", f'write MaxPrice: "{details["MaxPrice"]}"')
    if details.get("SpotInstanceType") == "persistent":
        problem = "a persistent request starts machines that Ray does not know"
        yield Found(place, problem, "write one-time, or drop it")


def small_disk(cluster: RayFile) -> Iterator[Found]:
    """A disk too small for a checkpoint, its quantized copies and the installation."""
    for kind in cluster.workers if cluster.provider == "aws" else ():
        sizes = [
            integer(inside(entry, "Ebs", "VolumeSize")) or 0
            for entry in sequence(kind.node_config.get("BlockDeviceMappings"))
            if text(mapping(entry).get("DeviceName")) in _ROOT_DISKS
        ]
        if kind.wants_gpus and max(sizes, default=0) < _SMALLEST_DISK_GB:
            said = f"{max(sizes)} GB" if sizes else "the image's own disk"
            problem = f"{said} is too small for a checkpoint and its quantized copies"
            fix = f"add BlockDeviceMappings with VolumeSize: {_SMALLEST_DISK_GB} or more"
            yield Found(kind.place("node_config"), problem, fix)


def region(cluster: RayFile) -> Iterator[Found]:
    """A region that does not exist, or zones outside it."""
    provider = mapping(cluster.data.get("provider"))
    if cluster.provider == "aws":
        name = text(provider.get("region"))
        if not _AWS_REGION.fullmatch(name):
            problem = f"AWS has no region {name!r}" if name else "no region is named"
            yield Found(("provider", "region"), problem, "write one such as us-east-1")
    elif cluster.provider == "gcp" and not provider.get("project_id"):
        yield Found(("provider",), "GCP needs a project", "add project_id")
    name = text(provider.get("region"))
    zones = text(provider.get("availability_zone"))
    named = [zone.strip() for zone in zones.split(",") if zone.strip()]
    outside = [zone for zone in named if name and not zone.startswith(name)]
    if outside and cluster.provider in ("aws", "gcp"):
        problem = f"zone {outside[0]} is not in region {name}"
        yield Found(("provider", "availability_zone"), problem, "write zones of the region")


def stopped_machines(cluster: RayFile) -> Iterator[Found]:
    """Machines that are stopped instead of ended, and come back with yesterday's installation."""
    if cluster.provider == "aws" and inside(cluster.data, "provider", "cache_stopped_nodes") in (
        None,
        True,
    ):
        problem = "idle machines are stopped, not ended: their disks are paid for and reused"
        fix = "write cache_stopped_nodes: false"
        yield Found(("provider", "cache_stopped_nodes"), problem, fix)


def labels(cluster: RayFile) -> Iterator[Found]:
    """Labels that Ray refuses when the machine starts, or that contradict the machine."""
    for kind in cluster.types:
        for key, value in mapping(kind.data.get("labels")).items():
            place = kind.place("labels", str(key))
            problem = (
                _wrong_label(str(key), str(value))
                or _wrong_market(kind, str(value))
                or _wrong_gpu(kind, str(key), str(value))
            )
            if problem:
                yield Found(place, problem, "letters, digits, - _ . and what the machine is")


def _wrong_label(key: str, value: str) -> str | None:
    prefix, _, name = key.rpartition("/")
    if prefix == "ray.io" or prefix.endswith(".ray.io"):
        return f"{key!r}: names with ray.io/ are Ray's own"
    if not _LABEL_NAME.fullmatch(name):
        return f"{key!r} is no label that Ray accepts"
    if value and not _LABEL_NAME.fullmatch(value):
        return f"{value!r} is no value that Ray accepts"
    return None


def _wrong_market(kind: NodeType, value: str) -> str | None:
    if value == "spot" and not kind.spot:
        return "the label says spot, the machine is on demand"
    if value in ("on-demand", "ondemand") and kind.spot:
        return "the label says on demand, the machine is spot"
    return None


def _wrong_gpu(kind: NodeType, key: str, value: str) -> str | None:
    model = kind.machine.model if kind.machine else ""
    if not model or key.lower() not in _GPU_LABELS or value.lower().startswith(model):
        return None
    name = kind.machine.name if kind.machine else ""
    return f"the label says {value}, {name} has {model.upper()}"


def local_machines(cluster: RayFile) -> Iterator[Found]:
    """Machines of one's own that are too few, named twice or not at all."""
    if cluster.provider != "local" or "coordinator_address" in mapping(cluster.data["provider"]):
        return
    provider = mapping(cluster.data.get("provider"))
    ips = [str(ip) for ip in sequence(provider.get("worker_ips"))]
    for key in ("head_ip", "worker_ips"):
        if not provider.get(key):
            yield Found(("provider",), f"no {key}: Ray gives up", f"add {key}")
    for key in ("min_workers", "max_workers"):
        count = integer(cluster.data.get(key))
        if ips and count is not None and count > len(ips):
            problem = f"{key} is {count}, but worker_ips names {len(ips)}: Ray takes those"
            yield Found((key,), problem, f"write {len(ips)}, or name more machines")
    repeated = sorted({ip for ip in ips if ips.count(ip) > 1})
    if provider.get("head_ip") in ips:
        repeated.append(str(provider["head_ip"]))
    for ip in repeated:
        yield Found(("provider", "worker_ips"), f"{ip} is named twice", "name it once")
