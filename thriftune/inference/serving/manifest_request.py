"""What manifests of a server are written for, and what is wrong with it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from thriftune.config.benchmark_run import BASE, problem_of_name
from thriftune.config.rules import with_user
from thriftune.errors import Problem
from thriftune.planning.serving import Served, ServingPlan
from thriftune.redaction import unsigned
from thriftune.stores.access import protocol_of
from thriftune.urls import bucket_of, is_remote

# As pod_templates has it, which knows Kubernetes and is not imported here: a test compares.
INSTANCE_LABEL = "node.kubernetes.io/instance-type"
CLAIM = "claim:"
# Of a Service, whose name begins that of its pods too: a label has 63 characters at most.
_SERVICE_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
_WORD = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_OBJECT_NAME = re.compile(rf"(?=.{{1,253}}$){_WORD}(\.{_WORD})*")  # of most other things in Kubernetes
_STORES = ("s3", "gs", "abfs")
_LIKE_OBJECTS = "Use small letters, digits, dashes and dots, with a letter or digit at both ends."
_VARIABLE = "$("  # with which Kubernetes begins one in an argument


@dataclass(frozen=True)
class ManifestRequest:
    """What to write manifests for.

    Attributes:
        name: Name of the Deployment and the Service.
        served: What is served, and by whom.
        plan: The node that holds it.
        files: Where the model's files are: `claim:NAME` for a volume that has them, or the URL of a folder in a store,
            which an init container brings.
        base: Folder of the base model there.
        adapters: Folders of the adapters there, by the names that they are served under.
        configurations: Local directories of the adapters, to see whether vLLM can serve them; by the same names.
        image: This project's image: for our own server, and to bring files from a store.
        secret: Name of the Secret whose key `api-key` holds the key that clients have to send.
        answer_tokens: Tokens of the longest answer, of those that a question and its answer may have.
        replicas: Number of pods.
        port: Port of the Service.
        node_label: Label of the nodes that holds their type; empty leaves the choice to resources.
        service_account: Account of the pods, by which a store knows them; empty for the namespace's own.
        drain_seconds: How long accepted requests are answered once a pod has to go.
        limits: Flags of other limits of our own server, where they are not the usual ones.
    """

    name: str
    served: Served
    plan: ServingPlan
    files: str
    base: str
    adapters: Mapping[str, str]
    configurations: Mapping[str, Path] = field(default_factory=dict)
    image: str = ""
    secret: str = "thriftune-serving"  # noqa: S105 - a name
    answer_tokens: int = 512
    replicas: int = 1
    port: int = 8000
    node_label: str = INSTANCE_LABEL
    service_account: str = ""
    drain_seconds: int = 60
    limits: Mapping[str, float] = field(default_factory=dict)


def problems_of(request: ManifestRequest) -> Iterator[Problem]:
    """Names, places and numbers of which no pod can be made.

    Args:
        request: The request.

    Yields:
        Each problem.
    """
    if not _SERVICE_NAME.fullmatch(request.name):
        remedy = "Use small letters, digits and dashes, at most 50, and begin with a letter."
        yield Problem("name", request.name, "is no name in Kubernetes.", remedy)
    account = {"service_account": request.service_account} if request.service_account else {}
    for what, name in {"secret": request.secret, **account}.items():
        if not _OBJECT_NAME.fullmatch(name):
            yield Problem(what, name, "is no name in Kubernetes.", _LIKE_OBJECTS)
    yield from _of_files(request.files)
    if not request.image and (is_remote(request.files) or request.served.engine == "own"):
        yield Problem("image", "", "this project's image is needed here.", "Build one with `make image`, and name it.")
    yield from _of_adapters(request)
    if request.served.engine != "own":
        for flag, number in request.limits.items():
            message = "is a limit of our own server, which vLLM does not have."
            yield Problem(flag, f"{number:g}", message, "Leave it out, or use --engine own.")
    if not 0 < request.answer_tokens < request.served.tokens:
        message = f"leaves no room for a question in {request.served.tokens} tokens."
        yield Problem("answer_tokens", str(request.answer_tokens), message, "Use fewer, and at least 1.")
    for what, number in {"replicas": request.replicas, "drain_seconds": request.drain_seconds}.items():
        if number < 1:
            yield Problem(what, str(number), "is less than one.", "Use at least 1.")
    if not 0 < request.port < 2**16:
        yield Problem("port", str(request.port), "is no port.", "Use 1 to 65535.")


def _of_files(files: str) -> Iterator[Problem]:
    if is_remote(files):
        yield from with_user("files", files)
        if unsigned(files) != files:
            remedy = "Leave its signature out, and give the pods an account that may read it."
            yield Problem("files", files, "is signed, and manifests are kept where many may read them.", remedy)
        elif protocol_of(files) not in _STORES or not bucket_of(files).partition("://")[2] or _VARIABLE in files:
            remedy = "Use a URL that begins with s3://, gs:// or abfs:// and a bucket, or claim:NAME."
            yield Problem("files", files, "is no folder in a store.", remedy)
    elif not files.startswith(CLAIM):
        yield Problem("files", files, "is neither a claim nor a URL.", "Use claim:NAME, or a URL like s3://...")
    elif not _OBJECT_NAME.fullmatch(files.removeprefix(CLAIM)):
        yield Problem("files", files, "names no claim that Kubernetes can have.", _LIKE_OBJECTS)


def _of_adapters(request: ManifestRequest) -> Iterator[Problem]:
    # vLLM takes an argument with a comma for JSON.
    marks = ("=", _VARIABLE, *([","] if request.served.engine == "vllm" else []))
    for name, path in {BASE: request.base, **request.adapters}.items():
        if path.startswith("/") or ".." in path.split("/"):
            message = "is no folder below that of the files."
            yield Problem(f"folders.{name}", path, message, "Use a path like run/adapter.")
        elif found := next((mark for mark in marks if mark in path), ""):
            message = f"has {found} in it, with which the server's command line would not name a folder."
            yield Problem(f"folders.{name}", path, message, "Use another folder, with a path like run/adapter.")
    for name in request.adapters:
        if problem := problem_of_name(name, f"adapters.{name}", request.adapters[name]):
            yield problem
    if {adapter.name for adapter in request.served.adapters} != request.adapters.keys():
        named = ", ".join(request.adapters)
        yield Problem("adapters", named, "are others than memory was planned for.", "Give both the same adapters.")
