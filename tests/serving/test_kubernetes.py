"""Manifests of a server: what Kubernetes' own client reads, with what was planned, and without a secret."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kubernetes.client import ApiClient
from peft.tuners.lora.config import KasaConfig

import pod_templates
from pod_templates.nodes import GPU as GPU_OF_TEMPLATES
from thriftune.config import HardwareConfig, ModelConfig
from thriftune.errors import AdapterError, ConfigError, UserError
from thriftune.hardware import DEVICES
from thriftune.inference.serving import manifest, vllm
from thriftune.inference.serving.cluster import ClusterOptions, manifests_of, planned
from thriftune.inference.serving.manifest import manifests
from thriftune.inference.serving.manifest_request import INSTANCE_LABEL, ManifestRequest
from thriftune.models import architecture
from thriftune.planning import catalogue, serving
from thriftune.planning.served_adapters import AdapterSize
from thriftune.planning.serving import Served

LLAMA = architecture.of(ModelConfig(source="meta-llama/Llama-2-7b-hf"))
CATALOGUE = catalogue.load()
NAMES = {"legal": "runs/legal/adapter", "support": "runs/support/adapter"}
SIZES = tuple(AdapterSize(name, 40_000_000, 12) for name in NAMES)


def configured(folder: Path, name: str = "a", **changes) -> Path:
    from peft import LoraConfig

    usual = {"r": 12, "lora_alpha": 24, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    LoraConfig(**(usual | changes)).save_pretrained(folder / name)
    return folder / name


@pytest.fixture
def request_for(tmp_path):
    """A request for a 7B model on a T4; changes of what is served, of its hardware, or of the request."""

    def make(engine="vllm", bits=4, hardware=None, **changes) -> ManifestRequest:
        served = Served(LLAMA, bits, SIZES, 4, 1024, engine)
        plan = serving.plan(served, HardwareConfig(**(hardware or {"device": "T4"})), CATALOGUE)
        configurations = {name: configured(tmp_path, name) for name in NAMES}
        usual = {"name": "adapters", "files": "claim:models", "base": "base", "image": "thriftune:1"}
        given = usual | {"adapters": NAMES, "configurations": configurations} | changes
        return ManifestRequest(served=served, plan=plan, **given)

    return make


def read_back(text: str) -> list[dict]:
    """The documents; Kubernetes' client reads each as its kind, and loses nothing of it."""
    client, documents = ApiClient(), list(yaml.safe_load_all(text))
    kinds = ["V1Deployment", "V1Service"]
    assert [f"V1{document['kind']}" for document in documents] == kinds
    for document, kind in zip(documents, kinds, strict=True):
        read = client.deserialize(json.dumps(document), kind, "application/json")
        assert client.sanitize_for_serialization(read) == document
    return documents


def pod_of(text: str) -> dict:
    return read_back(text)[0]["spec"]["template"]["spec"]


def flags_of(pod: dict) -> dict[str, str]:
    """Arguments by flag; those of a flag with several values are joined."""
    found, flag = {}, ""
    for argument in pod["containers"][0]["args"]:
        if argument.startswith("--"):
            flag, found[argument] = argument, ""
        else:
            found[flag] = f"{found[flag]} {argument}".strip()
    return found


def test_vllm_serves_with_the_plan_in_half_precision_on_a_t4(request_for):
    text = manifests(request_for())
    pod = pod_of(text)
    (container,) = pod["containers"]
    assert container["image"] == "vllm/vllm-openai:v0.8.5.post1"
    assert flags_of(pod) == {
        "--model": "/models/base", "--served-model-name": "base", "--host": "0.0.0.0", "--port": "8000",
        "--dtype": "half", "--max-model-len": "1024", "--max-num-seqs": "4", "--gpu-memory-utilization": "0.9",
        "--tensor-parallel-size": "1", "--quantization": "bitsandbytes", "--load-format": "bitsandbytes",
        "--enable-lora": "", "--max-loras": "2", "--max-lora-rank": "16",
        "--lora-modules": "legal=/models/runs/legal/adapter support=/models/runs/support/adapter",
    }  # fmt: skip
    assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "g4dn.xlarge"}
    asked = container["resources"]
    assert asked["requests"] == asked["limits"]
    assert asked["limits"]["nvidia.com/gpu"] == "1"
    assert text.startswith("# Memory of each device: ")
    assert "keys and values 2.00" in text
    assert "not run by those who wrote this" in text


def test_a_later_gpu_computes_in_bfloat16_and_several_share_a_model(request_for):
    pod = pod_of(manifests(request_for(bits=16, hardware={"device": "A10G"})))
    assert flags_of(pod)["--dtype"] == "bfloat16"
    assert "--quantization" not in flags_of(pod)
    two = request_for(bits=16)
    pod = pod_of(manifests(two))
    assert two.plan.node.devices == 2
    assert flags_of(pod)["--tensor-parallel-size"] == "2"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    memory = next(volume for volume in pod["volumes"] if volume["name"] == "dshm")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


def test_our_own_server_has_the_limits_that_were_planned(request_for):
    pod = pod_of(manifests(request_for("own", answer_tokens=200)))
    (container,) = pod["containers"]
    assert (container["image"], container["command"][-1]) == ("thriftune:1", "thriftune.inference.serve")
    assert flags_of(pod) == {
        "--base": "/models/base", "--host": "0.0.0.0", "--port": "8000", "--drain-seconds": "60", "--bits": "4",
        "--api-key-file": "/var/run/thriftune/api-key", "--max-batch": "4", "--max-prompt-tokens": "824",
        "--max-tokens": "200",
        "--adapters": "legal=/models/runs/legal/adapter support=/models/runs/support/adapter",
    }  # fmt: skip
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert pod["terminationGracePeriodSeconds"] > 60


@pytest.mark.parametrize("engine", ["vllm", "own"])
def test_the_pod_is_as_pod_templates_makes_it(request_for, engine):
    """thriftune may not know Kubernetes: what both write down is compared here."""
    asked = request_for(engine)
    size = f"{asked.plan.node.request.shared_memory_gib}Gi"
    template = pod_templates.on_instance(asked.plan.node.instance, pod_templates.unprivileged(), gpus=1)
    template = pod_templates.with_shared_memory(size, template)
    theirs = ApiClient().sanitize_for_serialization(template.pod_spec)
    ours = pod_of(manifests(asked))
    for key in ("securityContext", "nodeSelector", "tolerations", "automountServiceAccountToken"):
        assert ours[key] == theirs[key], key
    container = theirs["containers"][0]
    assert ours["containers"][0]["securityContext"] == container["securityContext"]
    assert container["volumeMounts"][0] in ours["containers"][0]["volumeMounts"]
    assert theirs["volumes"][0] in ours["volumes"]
    assert pod_templates.INSTANCE_LABEL == INSTANCE_LABEL
    assert manifest.GPU == GPU_OF_TEMPLATES


@pytest.mark.parametrize("engine", ["vllm", "own"])
def test_the_key_is_in_a_secret_and_the_service_finds_the_pods(request_for, engine):
    deployment, service = read_back(manifests(request_for(engine, secret="keys", port=80, replicas=3)))
    assert "keys" in json.dumps(deployment["spec"]["template"]["spec"])
    assert "--api-key " not in " ".join(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert deployment["spec"]["replicas"] == 3


def test_files_come_from_a_claim_or_are_brought_from_a_store(request_for):
    pod = pod_of(manifests(request_for()))
    assert "initContainers" not in pod
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    pod = pod_of(manifests(request_for(files="s3://bucket/run", service_account="reader")))
    (bring,) = pod["initContainers"]
    assert (bring["image"], bring["command"][3:]) == ("thriftune:1", ["s3://bucket/run", "/models"])
    assert "nvidia.com/gpu" not in bring["resources"]["limits"]
    assert pod["volumes"][0]["emptyDir"]
    assert pod["serviceAccountName"] == "reader"


@pytest.mark.parametrize("name", ["y", "1e3", "089", "0o17", "7b.models-2"])
def test_names_stay_texts_for_every_reader_of_yaml(request_for, name):
    """kubectl read the claim y as true, and a limit of 1e+22 as a number; PyYAML reads both as texts."""
    text = manifests(request_for("own", files=f"claim:{name}", secret=name, limits={"--head-seconds": 1e-05}))
    for line in (f"claimName: {name}", f"secretName: {name}", "- 1e-05"):
        key, _, value = line.rpartition(" ")
        assert f"{key} '{value}'\n" in text or not manifest._ELSEWHERE_NO_TEXT.fullmatch(value)
    assert flags_of(pod_of(text))["--head-seconds"] == "1e-05"
    (claim,) = (one["persistentVolumeClaim"] for one in pod_of(text)["volumes"] if one["name"] == "models")
    assert claim["claimName"] == name


def test_other_services_set_no_variables_of_vllm(request_for):
    """A Service named vllm gave each pod beside it VLLM_PORT=tcp://..., with which vLLM does not start."""
    assert pod_of(manifests(request_for(name="vllm")))["enableServiceLinks"] is False


@pytest.mark.parametrize(("engine", "waits"), [("vllm", 65), ("own", 5)])
def test_what_was_accepted_is_answered_before_a_pod_goes(request_for, engine, waits):
    """vLLM ends at once on SIGTERM, and its clients lost their answers 5 s after a rollout began."""
    pod = pod_of(manifests(request_for(engine)))
    (container,) = pod["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(waits)]
    assert pod["terminationGracePeriodSeconds"] == 75


@pytest.mark.parametrize("files", ["claim:models", "s3://bucket/run"])
def test_a_rollout_waits_as_long_as_a_start_may_take(request_for, files):
    """Kubernetes calls a Deployment failed after ten minutes, which a large model may take to start."""
    deployment, _ = read_back(manifests(request_for(files=files)))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    assert deployment["spec"]["progressDeadlineSeconds"] > probe["failureThreshold"] * probe["periodSeconds"] + 600


def test_what_brings_files_brings_them(tmp_path):
    import subprocess
    import sys

    source, place = tmp_path / "store", tmp_path / "pod"
    (source / "base").mkdir(parents=True)
    (source / "base" / "config.json").write_text("{}")
    command = [sys.executable, "-c", manifest._BRING, f"file://{source}", str(place)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert (place / "base" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Adapters!"}, "name"),
        ({"secret": "no name"}, "secret"),
        ({"files": "somewhere"}, "files"),
        ({"files": "s3://user:hunter2@bucket/run"}, "files"),
        ({"files": "https://host/run?X-Amz-Signature=abc"}, "files"),
        ({"files": "s3://bucket/run", "image": ""}, "image"),
        ({"secret": ""}, "secret"),
        ({"service_account": "no name"}, "service_account"),
        ({"files": "claim:My_Models"}, "files"),
        ({"files": "claim:"}, "files"),
        ({"files": "claim:a..b"}, "files"),
        ({"files": "https://host/run"}, "files"),
        ({"files": "file:///models"}, "files"),
        ({"files": "s3:///run"}, "files"),
        ({"files": "s3://bucket/$(HOME)"}, "files"),
        ({"base": "/etc"}, "folders.base"),
        ({"adapters": {**NAMES, "legal": "../../etc"}}, "folders.legal"),
        ({"adapters": {**NAMES, "legal": "$(SECRET)"}}, "folders.legal"),
        ({"adapters": {**NAMES, "legal": "run,2"}}, "folders.legal"),
        ({"adapters": {"base": "x", **NAMES}}, "adapters.base"),
        ({"adapters": {"legal": "x"}}, "adapters"),
        ({"answer_tokens": 1024}, "answer_tokens"),
        ({"replicas": 0}, "replicas"),
        ({"port": 70000}, "port"),
    ],
)
def test_what_no_pod_can_be_made_of_is_refused(request_for, changes, field):
    with pytest.raises(ConfigError) as caught:
        manifests(request_for(**changes))
    assert caught.value.problems[0].field == field
    assert "hunter2" not in str(caught.value)


def test_vllm_is_refused_on_devices_that_it_does_not_serve_on(request_for):
    asked = request_for()
    for name, said in {"V100": "compute capability 7.0", "CPU": "is no GPU"}.items():
        node = replace(asked.plan.node, hardware=DEVICES[name])
        with pytest.raises(ConfigError, match=rf"hardware.device = {name}: .*{said}"):
            manifests(replace(asked, plan=replace(asked.plan, node=node)))


REFUSED = {
    "DoRA": {"use_dora": True},
    "modules that trained as a whole": {"modules_to_save": ["lm_head"]},
    "biases are those of the base": {"bias": "all"},
    "tokens that trained": {"trainable_token_indices": [3]},
    "its adapters have biases": {"lora_bias": True},
    "rank_pattern, which vLLM does not read": {"rank_pattern": {"q_proj": 4}},
    "alpha_pattern, which vLLM does not read": {"alpha_pattern": {"q_proj": 4}},
    "kasa_config, which vLLM does not read": {"kasa_config": KasaConfig()},
}


def test_adapters_that_vllm_cannot_serve_are_refused_by_name(request_for, tmp_path):
    from peft import PrefixTuningConfig

    made = {f"a{number}": configured(tmp_path, f"a{number}", **own) for number, own in enumerate(REFUSED.values())}
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4).save_pretrained(tmp_path / "p")
    made |= {"prefix": tmp_path / "p", "good": configured(tmp_path, "good", use_rslora=True)}
    served = Served(LLAMA, 4, tuple(AdapterSize(name, 1, 8) for name in made), 4, 1024, "vllm")
    with pytest.raises(AdapterError) as caught:
        vllm.require_servable(DEVICES["T4"], served, made)
    said = {problem.field: problem.message for problem in caught.value.problems}
    assert said.keys() == {f"adapters.{name}" for name in made} - {"adapters.good"}
    for number, reason in enumerate(REFUSED):
        assert reason in said[f"adapters.a{number}"]
    assert "this is PREFIX_TUNING" in said["adapters.prefix"]
    with pytest.raises(AdapterError, match="there is no adapter prefix to look at"):
        vllm.require_servable(DEVICES["T4"], served, {name: made[name] for name in made if name != "prefix"})


def changed(source: Path, place: Path, file: str, **changes) -> Path:
    """A copy of a directory with another JSON file in it, and nothing that says what was in it."""
    shutil.copytree(source, place)
    (place / "manifest.json").unlink(missing_ok=True)
    (place / file).write_text(json.dumps(json.loads((place / file).read_text()) | changes))
    return place


def test_adapters_that_our_server_would_refuse_get_no_manifest(tiny_model_dir, random_adapter, tmp_path):
    adapters = {"one": random_adapter(1)}
    adapters["own"] = changed(adapters["one"], tmp_path / "own", "adapter_config.json", bias="all")
    options = ClusterOptions("claim:models", engine="own", image="here/image:1", tokens=256, answer_tokens=64)
    with pytest.raises(AdapterError, match="--adapters own = .* needs a copy of the base for itself"):
        manifests_of(tiny_model_dir, adapters, options, CATALOGUE)


@pytest.mark.parametrize("engine", ["vllm", "own"])
def test_a_base_that_no_server_could_load_gets_no_manifest(tiny_model_dir, random_adapter, tmp_path, engine):
    """There were manifests for a classifier and for adapters of another base; a damaged file was a traceback."""
    adapters = {"one": random_adapter(1)}
    options = ClusterOptions("claim:models", engine=engine, image="here/image:1", tokens=256, answer_tokens=64)
    architectures = {"architectures": ["LlamaForSequenceClassification"]}
    classifier = changed(tiny_model_dir, tmp_path / "classifier", "config.json", **architectures)
    with pytest.raises(UserError, match="--base = .*classifier: is a classifier, which writes no text"):
        manifests_of(classifier, adapters, options, CATALOGUE)
    other = changed(tiny_model_dir, tmp_path / "other", "config.json", hidden_size=32, head_dim=8)
    with pytest.raises(AdapterError, match="--adapters one = .*: has weights with other shapes"):
        manifests_of(other, adapters, options, CATALOGUE)
    cut = changed(tiny_model_dir, tmp_path / "cut", "config.json")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="cut: model.safetensors is not a complete safetensors file"):
        manifests_of(cut, adapters, options, CATALOGUE)


def test_a_model_on_this_disk_is_planned_and_written(tiny_model_dir, random_adapter):
    adapters = {"one": random_adapter(1), "two": random_adapter(2, rank=9)}
    options = ClusterOptions("claim:models", folders={"two": "other/two"}, tokens=256, answer_tokens=64)
    served, plan = planned(tiny_model_dir, adapters, options, CATALOGUE)
    assert [adapter.rank for adapter in served.adapters] == [4, 9]
    text = manifests_of(tiny_model_dir, adapters, options, CATALOGUE)
    flags = flags_of(pod_of(text))
    assert flags["--lora-modules"] == "one=/models/one two=/models/other/two"
    assert flags["--max-lora-rank"] == "16"
    assert plan.node.instance in text
    with pytest.raises(UserError, match="Answer at most"):
        manifests_of(tiny_model_dir, adapters, replace(options, sequences=10**7), CATALOGUE)
