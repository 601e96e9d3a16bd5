"""From a model on this disk to the manifests that serve it on a cluster: looked at, planned, written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from thriftune.config import HardwareConfig, ModelConfig
from thriftune.inference.serving import checking
from thriftune.inference.serving.manifest import manifests
from thriftune.inference.serving.manifest_request import INSTANCE_LABEL, ManifestRequest
from thriftune.inference.usable import require_usable
from thriftune.models import architecture, lineage
from thriftune.planning import serving
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.served_adapters import size_in
from thriftune.planning.serving import Bits, Engine, Served, ServingPlan


@dataclass(frozen=True)
class ClusterOptions:
    """How to serve on a cluster.

    Attributes:
        files: Where the pods find the model's files, as `ManifestRequest` has it.
        base: Folder of the base model there.
        folders: Folders of the adapters there, by name; those that are left out have their names.
        engine: Who serves.
        bits: How the base is held.
        sequences: Questions that are answered at a time.
        tokens: Tokens of the longest question with its answer.
        answer_tokens: Tokens of the longest answer.
        hardware: The kind of device, or the node type, that is asked for.
        name: Name of the Deployment and the Service.
        image: This project's image.
        secret: Name of the Secret with the key that clients send.
        replicas: Number of pods.
        node_label: Label of the nodes that holds their type.
        service_account: Account of the pods.
        drain_seconds: How long accepted requests are answered once a pod has to go.
        limits: Flags of other limits of our own server, where they are not the usual ones.
    """

    files: str
    base: str = "base"
    folders: Mapping[str, str] = field(default_factory=dict)
    engine: Engine = "vllm"
    bits: Bits = 16
    sequences: int = 8
    tokens: int = 2048
    answer_tokens: int = 512
    hardware: HardwareConfig = HardwareConfig()  # noqa: RUF009 - frozen
    name: str = "adapters"
    image: str = ""
    secret: str = "thriftune-serving"  # noqa: S105 - a name
    replicas: int = 1
    node_label: str = INSTANCE_LABEL
    service_account: str = ""
    drain_seconds: int = 60
    limits: Mapping[str, float] = field(default_factory=dict)


def planned(
    base: Path, adapters: Mapping[str, Path], options: ClusterOptions, catalogue: Catalogue
) -> tuple[Served, ServingPlan]:
    """What is served, and the node that holds it.

    Args:
        base: The base model on this disk; of its weights, a few numbers alone are read.
        adapters: The adapters on this disk, by the names that they are served under.
        options: How to serve.
        catalogue: Node types to choose among.

    Raises:
        UserError: The model or an adapter could not be served, or no node holds what is served.
    """
    require_usable(base, adapters, fields=("--base", "--adapters"), content=False)
    for name, directory in adapters.items():
        lineage.require_lineage(directory, base, f"--adapters {name}")
    if options.engine == "own":  # vLLM has rules of its own
        checking.require_on_one_base(adapters)
    shape = architecture.of(ModelConfig(source=str(base)))
    sizes = tuple(size_in(directory, name) for name, directory in adapters.items())
    served = Served(shape, options.bits, sizes, options.sequences, options.tokens, options.engine)
    return served, serving.plan(served, options.hardware, catalogue)


def manifests_of(base: Path, adapters: Mapping[str, Path], options: ClusterOptions, catalogue: Catalogue) -> str:
    """The manifests that serve a model with adapters, as YAML.

    Args:
        base: As in `planned`.
        adapters: As in `planned`.
        options: How to serve.
        catalogue: Node types to choose among.

    Raises:
        UserError: As `planned` and `manifests`.
    """
    served, plan = planned(base, adapters, options, catalogue)
    request = ManifestRequest(
        name=options.name,
        served=served,
        plan=plan,
        files=options.files,
        base=options.base,
        adapters={name: options.folders.get(name, name) for name in adapters},
        configurations=adapters,
        image=options.image,
        secret=options.secret,
        answer_tokens=options.answer_tokens,
        replicas=options.replicas,
        node_label=options.node_label,
        service_account=options.service_account,
        drain_seconds=options.drain_seconds,
        limits=options.limits,
    )
    return manifests(request)
