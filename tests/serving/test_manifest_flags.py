"""`--manifest k8s` writes what a cluster applies, planned for the limits of the same command line."""

import pytest
import yaml

from thriftune.inference.serve import _limits_of, _parser, main

SHORT = ["--max-tokens", "64", "--max-prompt-tokens", "100"]  # the tiny model has 256 positions


def command(base, adapters, *options):
    named = [f"{name}={path}" for name, path in adapters.items()]
    return ["--base", str(base), "--adapters", *named, "--manifest", "k8s", *options]


def test_manifests_are_written_for_the_limits_of_the_command_line(capsys, tiny_model_dir, module_adapters):
    options = ["--files", "claim:models", "--engine", "own", "--image", "thriftune:1", "--max-batch", "3"]
    folders = [
        "--service-account",
        "reader",
        "--folders",
        "a1=runs/one",
        "--max-tokens",
        "64",
        "--max-prompt-tokens",
        "100",
    ]
    others = ["--max-queue", "7", "--max-body-bytes", "123456789", "--request-seconds", "20.5", "--drain-seconds", "90"]
    assert main(command(tiny_model_dir, module_adapters, *options, *folders, *others)) == 0
    deployment, service = yaml.safe_load_all(capsys.readouterr().out)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = [*container.get("command", []), *container["args"]]
    planned = {"--max-batch": "3", "--max-tokens": "64", "--max-prompt-tokens": "100"}
    for name, value in {**planned, **dict(zip(others[::2], others[1::2], strict=True))}.items():
        assert given[given.index(name) + 1] == value
    assert "--stall-seconds" not in given
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == "reader"
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 90
    asked = ["--base", "b", *[part for part in container["args"] if part not in ("--base", "/models/base")]]
    assert _limits_of(_parser().parse_args(asked)).request_seconds == 20.5
    assert any(part.startswith("a1=") and part.endswith("runs/one") for part in given)


SHORT = ["--files", "claim:models", "--max-tokens", "64", "--max-prompt-tokens", "100"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "error: --files: is where the pods find the model"),
        ([*SHORT, "--max-queue", "7"], "error: --max-queue = 7: is a limit of our own server"),
        (
            ["--files", "claim:models", "--drain-seconds", "inf"],
            "error: --drain-seconds = inf: is no number above zero",
        ),
        (["--files", "claim:models", "--bits", "32"], "error: --bits = 32: is not planned for a cluster."),
        (["--files", "claim:models", "--folders", "other=x"], "error: --folders = other=x: is not NAME=PATH"),
        (["--files", "claim:models"], "error: --max-prompt-tokens and --max-tokens together = 5120: "),
        ([*SHORT, "--files", "models"], "error: --files = models: is neither a claim nor a URL."),
        ([*SHORT, "--files", "claim:models", "--device", "T5"], "error: --device = T5: "),
        ([*SHORT, "--files", "claim:models", "--instance", "g9.large"], "error: --instance = g9.large: "),
        ([*SHORT, "--files", "claim:models", "--name", "My App"], "error: --name = My App: is no name in Kubernetes."),
        ([*SHORT, "--files", "claim:models", "--engine", "own"], "error: --image: this project's image is needed"),
        ([*SHORT, "--files", "claim:models", "--replicas", "0"], "error: --replicas = 0: is less than one."),
        ([*SHORT, "--files", "claim:models", "--max-batch", "9999999"], "error: --max-batch = 9999999 x 164 tokens: "),
        ([*SHORT, "--files", "claim:models", "--bits", "8"], "error: --bits = 8: "),
        ([*SHORT, "--folders", "a1=x", "a1=y"], "error: --folders = a1=y: is a second folder of a1."),
        ([*SHORT, "--folders", "a1=/x"], "error: --folders a1 = /x: is no folder below"),
        ([*SHORT, "--folders", "base=a,b"], "error: --folders base = a,b: has , in it"),
        (
            [*SHORT, "--port", "80"],
            "error: --port = 80: is for a server that starts here. Leave it out, or --manifest.",
        ),
        ([*SHORT, "--service-account", "A b"], "error: --service-account = A b: is no name in Kubernetes."),
        ([*SHORT, "--api-key-file", "f"], "error: --api-key-file = f: is for a server"),
        ([*SHORT, "--threads", "2"], "error: --threads = 2: is for a server"),
        ([*SHORT, "--base", "nowhere"], "error: --base = nowhere: does not exist"),
    ],
)
def test_what_a_manifest_lacks(capsys, tiny_model_dir, module_adapters, options, text):
    assert main(command(tiny_model_dir, module_adapters, *options)) == 2
    assert text in capsys.readouterr().err
