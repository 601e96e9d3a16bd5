"""What a training is known by: every key of the run file is decided, and counts as the table says."""

from dataclasses import replace

import pytest
from planning import planned
from pydantic import BaseModel

from thriftune.checkpoints import identity, known_by
from thriftune.checkpoints.known_by import DECIDED
from thriftune.config import LoraConfig, ModelConfig, RunConfig, ZeroConfig
from thriftune.config.schema import PublishConfig
from thriftune.hardware import DEVICES

SECTIONS = {"zero": ZeroConfig, "lora": LoraConfig, "publish": PublishConfig}
# Another value for each key that counts by itself or not at all.
OTHERS = {
    "name": "another",
    "seed": 7,
    "plan": {"minimize": "time", "accept_uncertain": True, "budget": 9.0, "deadline_hours": 3.0},
    "training.epochs": 2.0,
    "training.max_steps": 11,
    "training.learning_rate": 3e-3,
    "training.scheduler": "linear",
    "training.warmup_share": 0.1,
    "training.weight_decay": 0.1,
    "training.max_grad_norm": 0.5,
    "training.optimizer": "adamw_8bit",
    "training.gradient_checkpointing": False,
    "training.save_dtype": "fp32",
    "training.group_by_length": True,
    "training.log_every": 3,
    "training.on_divergence": "rollback",
    "training.stall_timeout": 60,
    "training.keep": "best",
    "training.patience": 3,
    "training.report_to": "wandb",
    "lora.rank": 8,
    "lora.alpha": 8,
    "lora.dropout": 0.2,
    "lora.target_modules": ["q_proj"],
    "lora.rank_patterns": [{"pattern": "q_proj", "rank": 4}],
    "lora.variant": "dora",
    "lora.init": "orthogonal",
    "lora.bias": "all",
    "lora.modules_to_save": ["lm_head"],
    "lora.double_quantization": False,
    "lora.resume_from": "s3://bucket/adapter",
    "lora.merge": False,
    "checkpoints.every_steps": 3,
    "checkpoints.every_minutes": 3.0,
    "checkpoints.keep_checkpoints": 3,
    "checkpoints.resume_from": "s3://bucket/checkpoints",
    "evaluation.every_steps": 3,
    "evaluation.saved_model": True,
    "evaluation.watch_general": True,
    "evaluation.max_rows": 3,
    "evaluation.batch": 3,
    "evaluation.prompts": ["Why?"],
    "evaluation.max_new_tokens": 3,
    "benchmarks": {"tasks": ["general-mini"]},
    "export": {"formats": ["int8"]},
    "publish": {"repository": "me/tuned"},
}
# The method says what trains; no run of one file is of two. Nor has it the sections of two.
OF_ANOTHER_FILE = {
    "method": [{"method": "lora"}, {"method": "qlora"}],
    "task": [
        {"task": "classification", "classification": {"labels": ["a", "b"]}, "data": {"format": "labelled"}},
        {"task": "causal_lm"},
    ],
    "partial": [{"method": "partial", "partial": {"train": [what]}} for what in ("norms", "head")],
    "prefix": [{"method": "prefix", "prefix": {"virtual_tokens": count}} for count in (10, 20)],
    "llama_adapter": [{"method": "llama_adapter", "llama_adapter": {"tokens": count}} for count in (5, 10)],
    "classification": [
        {"task": "classification", "classification": {"labels": labels}, "data": {"format": "labelled"}}
        for labels in (["a", "b"], ["a", "c"])
    ],
}


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> set[str]:
    """All keys of the run file; a section that the table decides as a whole is one."""
    found = set()
    for name, field in model.model_fields.items():
        section = SECTIONS.get(name, field.annotation)
        if f"{prefix}{name}" not in DECIDED and isinstance(section, type) and issubclass(section, BaseModel):
            found |= keys(section, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def content(key: str = "", value: object = None) -> dict:
    made = {
        "name": "tiny",
        "method": "qlora",
        "model": {"source": "owner/tiny"},
        "data": {"source": "rows.jsonl", "format": "chat"},
        "hardware": {"device": "T4"},
        "training": {"precision": "fp16"},
    }
    section, _, name = key.rpartition(".")
    (made.setdefault(section, {}) if section else made)[name] = value
    made.pop("", None)
    return made


@pytest.fixture(scope="module")
def plan():
    return planned(RunConfig.model_validate(content()))


@pytest.fixture
def known(plan):
    """What the run with one other value is known by."""

    def make(key="", value=None, plan=plan, base="base", dataset="rows", start=""):
        config = RunConfig.model_validate(content(key, value))
        return known_by.training(config, plan, base=base, dataset=dataset, start=start)

    return make


def test_every_key_of_a_run_file_is_decided():
    """A new key would change nothing in the cache, or train everything again: decide it in the table."""
    assert keys() == set(DECIDED)
    decided = {key for key, counts in DECIDED.items() if counts in ("itself", "weights", "not")}
    assert decided == {*OTHERS, *OF_ANOTHER_FILE}


@pytest.mark.parametrize("key", OTHERS)
def test_a_key_counts_as_the_table_says(known, key):
    assert (known(key, OTHERS[key]) != known()) == (DECIDED[key] == "itself")


@pytest.mark.parametrize("key", OF_ANOTHER_FILE)
def test_a_key_of_another_file_counts(plan, key):
    made = content()
    runs = [{**made, **change, "data": {**made["data"], **change.get("data", {})}} for change in OF_ANOTHER_FILE[key]]
    configs = [RunConfig.model_validate(run) for run in runs]
    assert DECIDED[key] == "itself"
    assert len({known_by.training(run, plan, base="b", dataset="d", start="") for run in configs}) == len(runs)


def test_the_type_of_saved_weights_counts_where_weights_are_saved(known):
    """Adapters, which are stored as they trained, trained again for another type of the merged model."""
    values = [content("training.save_dtype", dtype) for dtype in ("auto", "bf16")]
    adapters = [RunConfig.model_validate(value) for value in values]
    assert len({known_by.merging(config, "adapter") for config in adapters}) == 2
    weights = [RunConfig.model_validate({**value, "method": "full"}) for value in values]
    plan = planned(weights[0])
    assert len({known_by.training(config, plan, base="b", dataset="d", start="") for config in weights}) == 2


def test_a_place_counts_whatever_its_signature(known):
    """A training that resumed from another run's checkpoints was served to one that did not."""
    for key in ("lora.resume_from", "checkpoints.resume_from"):
        signed = [known(key, f"https://store/run?X-Amz-Signature={mark}&X-Amz-Credential=a") for mark in "ab"]
        assert signed[0] == signed[1]
        assert len({known(), signed[0], known(key, "s3://bucket/another")}) == 3


def test_what_a_checkpoint_is_known_by_a_training_is_known_by(plan):
    own = identity.of(RunConfig.model_validate(content()), plan, model="m", dataset="d", rows=10)
    assert {name for name in own if DECIDED.get(name) == "not"} == set()


def test_rows_base_start_and_plan_count(known, plan):
    others = [
        known(dataset="other rows"),
        known(base="another base"),
        known("lora.resume_from", "s3://bucket/adapter", start="1"),
        known("lora.resume_from", "s3://bucket/adapter", start="2"),
        known(plan=replace(plan, micro_batch=plan.micro_batch * 2)),
        known(plan=replace(plan, hardware=DEVICES["A10G"])),
        known(plan=replace(plan, precision="fp32")),
    ]
    assert len({known(), *others}) == 1 + len(others)
    assert known(plan=replace(plan, price_per_hour=99.0, instance="g4dn.metal")) == known()


def test_values_that_mean_the_same_are_the_same(known):
    assert known("lora.dropout", 0.05) == known()
    assert known("lora.target_modules", ["q_proj", "v_proj"]) == known("lora.target_modules", ["v_proj", "q_proj"])
    both = content("training.max_steps", 5)
    configs = [RunConfig.model_validate({**both, "training": {**both["training"], "epochs": e}}) for e in (1.0, 2.0)]
    plan = planned(configs[0])
    assert len({known_by.training(c, plan, base="b", dataset="d", start="") for c in configs}) == 1


def test_a_model_is_known_by_source_version_and_code():
    def known(source="s3://bucket/tiny", version="1", **more):
        return known_by.model(ModelConfig(source=source, **more), version)

    signed = [f"https://store/tiny?X-Amz-Signature={mark}&X-Amz-Credential=a" for mark in "ab"]
    assert known(signed[0]) == known(signed[1])
    assert known(revision="main") == known(revision="v1") == known()
    assert len({known(), known("s3://bucket/other"), known(version="2"), known(trust_remote_code=True)}) == 4


def test_measurements_are_known_by_what_is_asked_and_where(plan):
    def known(key="", value=None, plan=plan, measured="m", as_trained=False):
        config = RunConfig.model_validate(content(key, value))
        return known_by.measuring(config, plan, measured=measured, dataset="d", as_trained=as_trained)

    asked = {key: OTHERS[key] for key in ("evaluation.prompts", "evaluation.max_new_tokens", "evaluation.max_rows")}
    others = [known(key, value) for key, value in asked.items()]
    others += [known(plan=replace(plan, precision="fp32")), known(measured="n"), known(as_trained=True)]
    assert len({known(), *others}) == 1 + len(others)
    assert known("evaluation.batch", 3) == known("name", "another") == known()
