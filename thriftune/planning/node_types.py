"""What is known of a kind of node: hardware, price, and what a pod can have of it."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from thriftune.config import Section
from thriftune.devices import contradiction, hint
from thriftune.hardware import DEVICES, Device

Interconnect = Literal["none", "pcie", "nvlink", "nvswitch"]

_MIB_PER_GIB = 1024
# Share of an instance's memory that its operating system never sees.
_HIDDEN_MEMORY = 0.07
# The kubelet's own reservation on EKS, and the free memory below which it evicts pods.
_KUBELET_MIB = 255
_KUBELET_MIB_PER_POD = 11
_EVICTION_MIB = 100
# Pods that run on every node: CNI, kube-proxy, device plugin, log shipper.
_DAEMONS_GIB = 1.5
_DAEMONS_VCPUS = 1
_HOURS_PER_MONTH = 730


class NodeProperties(Section):
    """Hardware and price of a kind of machine: an entry of the file, without its name.

    The devices that there are come as the validation's context `devices`, None for one that is wrong itself; without a
    context they are the shipped ones.
    """

    device: str = Field(description="Kind of GPU: a shipped one, or one of the catalogue's own section `devices`.")
    gpus: NonNegativeInt = Field(le=1_000, description="GPUs per node: at least 1; 0 only for device CPU.")
    gpu_gib: NonNegativeFloat = Field(
        description="Memory per GPU that the driver shows, in GiB: less than the data sheet says; 0 only for CPU."
    )
    # Bounds are far above any machine, and below what comes of another unit: MiB, Mbit/s, cents.
    host_gib: float = Field(gt=0, le=100_000, description="Memory of the host that the provider states, in GiB.")
    vcpus: PositiveInt = Field(le=10_000, description="Virtual CPUs of the host.")
    disk_gb: NonNegativeFloat = Field(le=10_000_000, description="Local NVMe disk, in GB; 0 for none.")
    network_gbps: float = Field(gt=0, le=20_000, description="Sustained network bandwidth (not burst), in Gbit/s.")
    own: bool = Field(
        default=False,
        description="A machine of your own: only runs that name it (hardware.instance) are planned on it.",
    )
    price_per_hour: NonNegativeFloat = Field(
        le=100_000,
        description="Price of one node for one hour, in the catalogue's currency; 0 only for a machine of your own.",
    )
    spot_price_per_hour: float | None = Field(
        default=None, description="The same on the spot market; that on demand is taken when left out."
    )
    interruptions_per_month: float | None = Field(
        default=None,
        description="Interruptions of such a node in a month on the spot market: 0.22 where 20 % of the nodes are "
        "taken back in one; the catalogue's own when left out.",
    )
    bf16: bool = Field(description="Whether the GPU has bfloat16: true from compute capability 8.0 on.")
    interconnect: Interconnect = Field(
        description="What joins the GPUs of a node: pcie, nvlink or nvswitch; none only where there is one at most."
    )
    max_pods: PositiveInt = Field(
        default=110, description="Pods that the kubelet allows and reserves memory for; 110 is Kubernetes' default."
    )

    @property
    def has_gpu(self) -> bool:
        """Whether the node has a GPU."""
        return self.gpus > 0

    @property
    def allocatable_host_gib(self) -> float:
        """Host memory that a training pod can ask for on an otherwise empty node, in GiB.

        Not available are: 255 MiB + 11 MiB per allowed pod for the kubelet; the 100 MiB below which it evicts pods; the
        7 % that firmware and kernel keep; and 1.5 GiB for the node's own daemons. The last two are assumptions
        (Karpenter assumes 7.5 % for firmware and kernel): `kubectl describe node` shows yours.

        Source: awslabs/amazon-eks-ami, nodeadm/internal/kubelet/config.go (`getMemoryMebibytesToReserve`); Karpenter's
        setting `vmMemoryOverheadPercent`, https://karpenter.sh/docs/reference/settings/.
        """
        kubelet_mib = _KUBELET_MIB + _KUBELET_MIB_PER_POD * self.max_pods + _EVICTION_MIB
        return max(0.0, self.host_gib * (1 - _HIDDEN_MEMORY) - kubelet_mib / _MIB_PER_GIB - _DAEMONS_GIB)

    @property
    def allocatable_vcpus(self) -> int:
        """Virtual CPUs that a training pod can ask for on an otherwise empty node.

        One is left for the kubelet (EKS reserves 0.08 of 4 CPUs, 0.55 of 192) and the node's own daemons.

        Source: awslabs/amazon-eks-ami, nodeadm/internal/kubelet/config.go (`getCPUMillicoresToReserve`).
        """
        return max(0, self.vcpus - _DAEMONS_VCPUS)

    @field_validator("device")
    @classmethod
    def _is_known(cls, device: str, info: ValidationInfo) -> str:
        known = _devices(info)
        if device not in known:
            raise contradiction(f"is no known device. {hint(device, known).rstrip('.')}")
        return device

    @field_validator("gpus")
    @classmethod
    def _fits_the_device(cls, gpus: int, info: ValidationInfo) -> int:
        device = _device(info)
        if device and device.is_gpu and gpus == 0:
            raise contradiction(f"leaves a node for {device.name} without a GPU")
        if device and not device.is_gpu and gpus > 0:
            raise contradiction(f"gives GPUs to a node whose device is {device.name}")
        return gpus

    @field_validator("gpu_gib")
    @classmethod
    def _is_no_more_than_there_is(cls, gpu_gib: float, info: ValidationInfo) -> float:
        device = _device(info)
        if device and gpu_gib > device.memory_gib:
            raise contradiction(f"is more than the {device.memory_gib} GiB of {device.name}")
        if device and device.is_gpu and gpu_gib == 0:
            raise contradiction(f"leaves {device.name} without memory")
        return gpu_gib

    @field_validator("price_per_hour")
    @classmethod
    def _is_paid_unless_own(cls, price: float, info: ValidationInfo) -> float:
        if price == 0 and not info.data.get("own"):
            raise contradiction("makes a node free that is not your own")
        return price

    @field_validator("spot_price_per_hour")
    @classmethod
    def _is_no_dearer_than_on_demand(cls, spot: float | None, info: ValidationInfo) -> float | None:
        price = info.data.get("price_per_hour")
        if spot is not None and not spot > 0:
            raise contradiction("is no price: leave it out where it is not known")
        if spot is not None and price is not None and not spot <= price:
            raise contradiction(f"is more than {price:g}, for which the node is never taken back")
        return spot

    @field_validator("interruptions_per_month")
    @classmethod
    def _is_a_rate(cls, rate: float | None) -> float | None:
        return possible_rate(rate)

    @field_validator("bf16")
    @classmethod
    def _is_what_the_hardware_has(cls, bf16: bool, info: ValidationInfo) -> bool:
        device = _device(info)
        if device and bf16 != device.has_bf16:
            has = "has bfloat16" if device.has_bf16 else "has no bfloat16"
            raise contradiction(f"contradicts the device: {device.name} {has}")
        return bf16

    @field_validator("interconnect")
    @classmethod
    def _joins_several_gpus(cls, interconnect: Interconnect, info: ValidationInfo) -> Interconnect:
        gpus = info.data.get("gpus")
        if gpus is not None and (gpus > 1) != (interconnect != "none"):
            raise contradiction(f"does not go with {gpus} GPU{'s' if gpus != 1 else ''}")
        return interconnect


def possible_rate(rate: float | None) -> float | None:
    """Interruptions of a node in a month, checked.

    Args:
        rate: Their number; None where it is not known.

    Raises:
        PydanticCustomError: They are fewer than none, or more than one in an hour.
    """
    if rate is not None and not 0 <= rate <= _HOURS_PER_MONTH:
        raise contradiction(f"is no number of interruptions of a node in a month, from 0 to {_HOURS_PER_MONTH}")
    return rate


class NodeType(NodeProperties):
    """A kind of machine that can be rented, or is there."""

    name: str = Field(description="The provider's name for it, such as g4dn.12xlarge.")


def _devices(info: ValidationInfo) -> Mapping[str, Device | None]:
    devices: Mapping[str, Device | None] = (info.context or {}).get("devices", DEVICES)
    return devices


def _device(info: ValidationInfo) -> Device | None:
    """The device of the node that is being validated; None if the device itself was wrong."""
    return _devices(info).get(info.data.get("device", ""))
