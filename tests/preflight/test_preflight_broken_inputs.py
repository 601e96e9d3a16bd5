"""Broken inputs, each refused by a preflight of the whole run with the one code that says what is wrong."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import chat_rows, run_dict, write_jsonl
from preflighting import Checking, broken_copy, codes, plan_for
from safetensors.torch import load_file, save_file

from thriftune.codes import CODES
from thriftune.config import RunConfig
from thriftune.config.workflow_rules import require_workflow
from thriftune.data import conversion
from thriftune.data.selection import Mix, select
from thriftune.errors import ConfigError, Problem, ThriftuneError, TransientError
from thriftune.hardware import DEVICES
from thriftune.planning import catalogue, planner
from thriftune.planning.offers import THIS_MACHINE, Offer
from thriftune.preflight import SecretState
from thriftune.preflight.outputs import RAW_OUTPUT
from thriftune.training_plan import TrainingPlan, Verdict

MIXTRAL = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400,
    "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 400}
FALCON = {
    "model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400,
}  # fmt: skip
ASKING = {"role": "user", "content": "What is red?"}


@dataclass
class World:
    """What a broken input is made from."""

    folder: Path
    tiny_model: Path
    adapter: Callable[..., Path]

    def model(self, *remove: str, **options: Any) -> dict[str, Any]:
        return {"model": {"source": str(broken_copy(self.tiny_model, self.folder, *remove, **options))}}

    def weights(self, change: Callable[[bytes], bytes]) -> dict[str, Any]:
        made = self.model()
        file = Path(made["model"]["source"]) / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
        return made

    def model_of(self, content: dict[str, Any]) -> dict[str, Any]:
        """A model of another architecture, with weights of its own."""
        from transformers import AutoConfig, AutoModelForCausalLM

        made = self.model("config.json", "*.safetensors")
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**content)).save_pretrained(made["model"]["source"])
        return made

    def file(self, name: str, content: str | bytes) -> dict[str, Any]:
        file = self.folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return {"data": {"source": str(file)}}

    def rows(self, rows: list[dict[str, Any]], **data: Any) -> dict[str, Any]:
        return {"data": {"source": str(write_jsonl(self.folder / "rows.jsonl", rows)), **data}}


@dataclass
class Run:
    """Sections of the run to override, the arguments of the preflight, and the method."""

    overrides: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    method: str = "full"


ITEM = {"id": "1", "question": "Which of them is a fruit?", "choices": ["fig", "car"], "answer": 0}


def benchmark(world: World, items: list[dict[str, Any]]) -> dict[str, Any]:
    file = write_jsonl(world.folder / "items.jsonl", items)
    return {"benchmarks": {"tasks": [{"name": "mine", "file": str(file), "format": "multiple_choice"}]}}


def outputs_in_a_file(world: World) -> Path:
    (world.folder / "file").touch()
    return world.folder / "file/outputs"


def that_may_not_fit(world: World) -> TrainingPlan:
    plan = plan_for("full", world.tiny_model)
    verdict = Verdict("uncertain", "each GPU", 10.0, 15.0, 14.6, "a calibration measures it")
    return replace(plan, instance="g4dn.xlarge", memory=replace(plan.memory, verdict=verdict))


def larger_than_the_disk(world: World) -> TrainingPlan:
    plan = plan_for("full", world.tiny_model)
    return replace(plan, memory=replace(plan.memory, disk={"models": 1e9}))


def answered(answer: str, question: str = "What is red?") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def held_out_row_is_bad(world: World) -> dict[str, Any]:
    """Rows of which just those that are held out cannot be used."""
    rows = chat_rows()
    (selection,) = select([len(rows)], Mix(), seed=0)
    held_out = np.argsort(next(selection.ranks()))[: len(rows) // 10]
    return world.rows([{"messages": []} if i in held_out else row for i, row in enumerate(rows)], max_rejected=1)


def two_shards_one_missing(world: World) -> dict[str, Any]:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    return world.model(write={"model.safetensors.index.json": json.dumps(index)})


def pad_past_the_table(world: World) -> dict[str, Any]:
    from transformers import AutoTokenizer

    directory = broken_copy(world.tiny_model, world.folder)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"pad_token": "<|new pad|>"})
    tokenizer.save_pretrained(directory)
    return {"model": {"source": str(directory)}}


def slow_tokenizer(world: World) -> dict[str, Any]:
    from transformers import ByT5Tokenizer

    directory = broken_copy(world.tiny_model, world.folder, "tokenizer*", write={"vocab.json": "{}"})
    ByT5Tokenizer().save_pretrained(directory)
    return {"model": {"source": str(directory)}}


def adapter(world: World, **change: Any) -> Run:
    place = world.adapter(1)
    (place / "manifest.json").unlink()  # made so, and not damaged
    file = place / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return Run({"lora": {"resume_from": str(place), "rank": 4, "alpha": 8}}, method="qlora")


def adapter_without(world: World, name: str) -> Run:
    run = adapter(world)
    (Path(run.overrides["lora"]["resume_from"]) / name).unlink()
    return run


def adapter_for(world: World, **section: Any) -> Run:
    run = adapter(world)
    run.overrides["lora"] |= section
    return run


def half_an_adapter(world: World) -> Run:
    run = adapter(world)
    file = Path(run.overrides["lora"]["resume_from"]) / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if "layers.0" in name}, file)
    return run


def damaged_adapter(world: World) -> Run:
    place = world.adapter(1)
    with (place / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"x" * 100)
    return Run({"lora": {"resume_from": str(place), "rank": 4, "alpha": 8}}, method="qlora")


def linked(made: Run | dict[str, Any], name: str, to: Path) -> Run | dict[str, Any]:
    """The same with a link in place of a file of the model or the adapter; one that is relative leads nowhere."""
    place = Path(made.overrides["lora"]["resume_from"] if isinstance(made, Run) else made["model"]["source"])
    if to.is_absolute() and (place / name).exists():
        to.write_bytes((place / name).read_bytes())
    (place / name).unlink(missing_ok=True)
    (place / name).symlink_to(to)
    return made


def lora(**section: Any) -> Run:
    return Run({"lora": section}, method="qlora")


def write(name: str, text: str) -> dict[str, Any]:
    return {"write": {name: text}}


def config_with(**values: Any) -> dict[str, Any]:
    return {"change": {"config.json": values}}


def without_plan(world: World, **overrides: Any) -> Run:
    """A run that the planner has no plan for on a machine with next to no memory, and what it says of that."""
    content = run_dict(model={"source": str(world.tiny_model)}, **overrides)
    here = Offer(THIS_MACHINE, DEVICES["CPU"], 0, 0.0, 0.01, 2, 100.0, 0.0)
    with pytest.raises(ConfigError) as caught:
        planner.plan(RunConfig.model_validate(content), catalogue.load(), here=here)
    return Run(overrides, {"plan": caught.value})


def of_other_workflow(world: World) -> Run:
    with pytest.raises(ConfigError) as caught:
        require_workflow(RunConfig.model_validate(run_dict()), "qlora_finetune")
    return Run(options={"plan": caught.value})


ALL_LONG = [answered("red " * 60, f"What is {number}?") for number in range(30)]
PREFIX = "A quoted </s> ends the text."

CASES: dict[str, tuple[str, Callable[[World], Run | dict[str, Any]]]] = {
    "no such model directory": ("model-not-found", lambda w: {"model": {"source": "./nowhere"}}),
    "an empty model directory": ("model-not-found", lambda w: {"model": {"source": str(w.folder)}}),
    "a path that is no hub id": ("model-not-found", lambda w: {"model": {"source": "models/llama/7b"}}),
    "an empty store": ("model-not-found", lambda w: {"model": {"source": "memory://no-such-model"}}),
    "no such GGUF file": ("model-not-found", lambda w: {"model": {"source": "./nowhere.gguf"}}),
    "an unknown kind of URL": ("model-unreadable", lambda w: {"model": {"source": "foo://bucket/model"}}),
    "a GGUF file that is none": (
        "model-unreadable",
        lambda w: {"model": {"source": w.file("m.gguf", b"not GGUF")["data"]["source"]}},
    ),
    "a model that links out of its directory": (
        "model-unreadable", lambda w: linked(w.model(), "tokenizer.json", w.folder / "elsewhere"),
    ),
    "a model that links in a circle": (
        "model-unreadable", lambda w: linked(w.model("config.json"), "config.json", Path("config.json")),
    ),
    "a model that links to nothing": (
        "model-unreadable", lambda w: linked(w.model("config.json"), "config.json", Path("nowhere")),
    ),
    "weights that overlap": (
        "model-incomplete", lambda w: w.weights(lambda content: content.replace(b'offsets":[0,', b'offsets":[4,')),
    ),
    "no weights": ("model-incomplete", lambda w: w.model("model.safetensors")),
    "no config.json": ("model-incomplete", lambda w: w.model("config.json")),
    "no tokenizer": ("model-incomplete", lambda w: w.model("tokenizer.json")),
    "pickled weights": ("model-incomplete", lambda w: w.model("model.safetensors", **write("pytorch_model.bin", "x"))),
    "a shard that is not there": ("model-incomplete", two_shards_one_missing),
    "a file of weights cut short": ("model-incomplete", lambda w: w.weights(lambda content: content[:-100])),
    "a pointer of Git LFS": ("model-incomplete", lambda w: w.weights(lambda _: b"version https://git-lfs.github.com")),
    "more layers than weights": ("model-weights-missing", lambda w: w.model(**config_with(num_hidden_layers=3))),
    "an adapter in place of a model": (
        "model-incomplete", lambda w: w.model("config.json", **write("adapter_config.json", "{}")),
    ),
    "config.json that is no JSON": ("model-config-invalid", lambda w: w.model(**write("config.json", "{oops"))),
    "generation_config.json that is no JSON": (
        "model-config-invalid", lambda w: w.model(**write("generation_config.json", "{oops")),
    ),
    "config.json that is a list": ("model-config-invalid", lambda w: w.model(**write("config.json", "[]"))),
    "unknown architecture": ("model-config-invalid", lambda w: w.model(**config_with(model_type="lama"))),
    "no hidden size": ("model-config-invalid", lambda w: w.model(**config_with(hidden_size=None))),
    "no attention heads": ("model-config-invalid", lambda w: w.model(**config_with(num_attention_heads=0))),
    "heads that do not divide": ("model-config-invalid", lambda w: w.model(**config_with(num_attention_heads=5))),
    "tokenizer.json that is no JSON": ("tokenizer-broken", lambda w: w.model(**write("tokenizer.json", "{oops"))),
    "tokenizer of an unknown kind": (
        "tokenizer-broken",
        lambda w: w.model(change={"tokenizer.json": {"model": {"type": "Magic"}}}),
    ),
    "a tokenizer without character offsets": ("tokenizer-slow", slow_tokenizer),
    "no EOS token": ("tokenizer-no-eos", lambda w: w.model(change={"tokenizer_config.json": {"eos_token": None}})),
    "no chat template": ("chat-template-missing", lambda w: w.model("chat_template.jinja")),
    "a chat template that is none": (
        "chat-template-fails",
        lambda w: w.model(**write("chat_template.jinja", "{% for m in messages %}{{ m.content }}")),
    ),
    "a chat template that never ends": (
        "chat-template-fails",
        lambda w: w.model(**write("chat_template.jinja", "{% for a in range(9999) %}" * 5 + "{% endfor %}" * 5)),
    ),
    "a chat template that writes gigabytes": (
        "chat-template-fails",
        lambda w: w.model(**write("chat_template.jinja", "{{ 'x' * 3000000000 }}")),
    ),
    "a chat template that refuses": (
        "chat-template-fails",
        lambda w: w.model(**write("chat_template.jinja", "{{ raise_exception('only for tools') }}")),
    ),
    "a chat template that leaves out the answer": (
        "chat-template-fails",
        lambda w: w.model(**write("chat_template.jinja", "{{ messages[0].content }}")),
    ),
    "a chat template that fails, and no data": (
        "chat-template-fails data-not-found",
        lambda w: w.model(**write("chat_template.jinja", "{{ 1 / 0 }}")) | {"data": {"source": "nowhere.jsonl"}},
    ),
    "a table too small for the tokens": (
        "token-outside-embedding",
        lambda w: w.model(**config_with(vocab_size=200), fill=True),
    ),
    "a pad token past the table": ("pad-outside-embedding", pad_past_the_table),
    "no such data file": ("data-not-found", lambda w: {"data": {"source": "nowhere.jsonl"}}),
    "a glob that matches nothing": ("data-not-found", lambda w: {"data": {"source": "data/*.parquet"}}),
    "one of several sources missing": (
        "data-not-found",
        lambda w: {"data": {"source": "", "format": None, "sources": [
            {"source": w.rows(chat_rows())["data"]["source"], "format": "chat"},
            {"source": "nowhere.jsonl", "format": "chat"},
        ]}},
    ),
    "a file of another kind": ("data-unreadable", lambda w: {"data": {"source": "./rows.xlsx"}}),
    "a store that nobody can read": ("data-unreadable", lambda w: {"data": {"source": "foo://bucket/rows.jsonl"}}),
    "lines that are no JSON": ("data-unreadable", lambda w: w.file("rows.jsonl", "What?\nNothing.\n")),
    "a broken Parquet file": ("data-unreadable", lambda w: w.file("rows.parquet", b"PAR1 and no more")),
    "a CSV header with a column twice": ("data-unreadable", lambda w: w.file("rows.csv", "messages,messages\na,b\n")),
    "a .gz file that is none": ("data-unreadable", lambda w: w.file("rows.jsonl.gz", b"not compressed")),
    "an empty file": ("data-empty", lambda w: w.file("rows.jsonl", "\n\n")),
    "columns of another format": ("data-columns-missing", lambda w: {"data": {"format": "alpaca"}}),
    "a mapped column that is not there": (
        "data-columns-missing",
        lambda w: {"data": {"columns": {"messages": "conversation"}}},
    ),
    "a single row": ("too-few-rows", lambda w: w.rows(chat_rows()[:1])),
    "max_rows that leaves one": ("too-few-rows", lambda w: {"data": {"max_rows": 1}}),
    "a table that nobody gave": ("table-missing", lambda w: {"data": {"source": "input:table"}}),
    "a table that nobody reads": ("table-unused", lambda w: Run(options={"table": [Path("table.parquet")]})),
    "too many bad rows": ("too-many-rejected", lambda w: w.rows([*chat_rows(), {"messages": []}, {"messages": []}])),
    "no answers": ("too-many-rejected", lambda w: w.rows([{"messages": [ASKING]}] * 20)),
    "special tokens spelled out": (
        "too-many-rejected",
        lambda w: w.rows([answered(f"{PREFIX} {number}") for number in range(20)]),
    ),
    "only bad rows, and all allowed": (
        "no-training-rows",
        lambda w: w.rows([{"messages": [ASKING]}] * 20, max_rejected=1),
    ),
    "the same row again and again": ("too-few-rows", lambda w: w.rows([answered("Red.")] * 20)),
    "held-out rows that cannot be used": ("no-held-out-rows", held_out_row_is_bad),
    "prompts longer than a row": ("all-rows-too-long", lambda w: {"data": {"max_length": 16}}),
    "long rows, all to be dropped": ("all-rows-too-long", lambda w: w.rows(ALL_LONG, long_rows="drop")),
    "rows all cut before their end": ("eos-never-trained", lambda w: w.rows(ALL_LONG)),
    "answers with the pad token": (
        "pad-trained",
        lambda w: w.rows([answered(f"<pad> {number}") for number in range(30)], special_tokens="keep"),
    ),
    "LoRA targets of another model": ("lora-target-missing", lambda w: lora(target_modules=["query_key_value"])),
    "adapters that peft refuses": (
        "lora-refused",
        lambda w: Run(
            w.model(**write("config.json", json.dumps(MIXTRAL)), fill=True) | {"lora": {"dropout": 0.05}},
            method="qlora",
        ),
    ),
    "layers that bitsandbytes leaves alone": (
        "quantization-saves-nothing",
        lambda w: Run(w.model_of(FALCON), method="qlora"),
    ),
    "a prompt beyond the position table": (
        "evaluation-prompt-unusable",
        lambda w: w.model_of({**GPT2, "n_positions": 64}) | {"evaluation": {"prompts": ["What is red? " * 20]}},
    ),
    "rows beyond the position table": ("max-length-beyond-table", lambda w: w.model_of(GPT2)),
    "no adapter to go on from": ("adapter-not-found", lambda w: lora(resume_from=str(w.folder / "nowhere"))),
    "an adapter without weights": ("adapter-not-found", lambda w: adapter_without(w, "adapter_model.safetensors")),
    "an adapter without its configuration": ("adapter-not-found", lambda w: adapter_without(w, "adapter_config.json")),
    "an adapter with a hundred changed bytes": ("adapter-unreadable", damaged_adapter),
    "an adapter that links out of its directory": (
        "adapter-unreadable", lambda w: linked(adapter(w), "adapter_config.json", w.folder / "elsewhere"),
    ),
    "an adapter that links in a circle": (
        "adapter-unreadable", lambda w: linked(adapter(w), "adapter_config.json", Path("adapter_config.json")),
    ),
    "an adapter that is no LoRA": ("adapter-not-found", lambda w: adapter(w, r=None)),
    "an adapter of another rank": ("adapter-shape-differs", lambda w: adapter_for(w, rank=16)),
    "an adapter of another alpha": ("adapter-shape-differs", lambda w: adapter_for(w, alpha=32)),
    "a configuration of another rank than the weights": (
        "adapter-shape-differs adapter-weights-misfit", lambda w: adapter(w, r=16),
    ),
    "an adapter on other modules": ("adapter-shape-differs", lambda w: adapter_for(w, target_modules=["q_proj"])),
    "half of an adapter's weights": ("adapter-weights-misfit", half_an_adapter),
    "nothing fits": ("plan-does-not-fit", without_plan),
    "two nodes on one machine": ("plan-does-not-fit", lambda w: without_plan(w, hardware={"nodes": 2})),
    "a plan that may not fit": ("plan-uncertain", lambda w: Run(options={"plan": that_may_not_fit(w)})),
    "an unknown ZeRO file": ("zero-config-invalid", lambda w: without_plan(w, zero={"config": "zero9"})),
    "a misspelt ZeRO setting": (
        "zero-config-invalid",
        lambda w: without_plan(w, zero={"config": {"zero_optimization": {"stage": 3, "overlap_com": True}}}),
    ),
    "the other workflow's method": ("wrong-workflow", of_other_workflow),
    "a planner that could not read the model": (
        "hub-unreachable",
        lambda w: Run(options={"plan": TransientError("The hub cannot be reached.")}),
    ),
    "no such secret": (
        "secret-missing",
        lambda w: Run(options={"secrets": [SecretState("THRIFTUNE_HUB_SECRET", "group/key", False, "the hub")]}),
    ),
    "a bucket that refuses": (
        "output-not-writable",
        lambda w: Run(options={"written": {RAW_OUTPUT: ("s3://b/x", "is denied.")}}),
    ),
    "a folder that is none": ("output-not-writable", lambda w: Run(options={"folder": outputs_in_a_file(w)})),
    "a plan for a larger disk": (
        "output-too-little-room",
        lambda w: Run(options={"folder": w.folder / "outputs", "plan": larger_than_the_disk(w)}),
    ),
    "publishing without a token": ("publish-no-token", lambda w: {"publish": {"repository": "me/tuned"}}),
    "a blank prompt": ("evaluation-prompt-unusable", lambda w: {"evaluation": {"prompts": ["What is red?", " "]}}),
    "a benchmark that is none": ("benchmark-unknown", lambda w: {"benchmarks": {"tasks": ["held-out"]}}),
    "a benchmark with an item twice": ("benchmark-item", lambda w: benchmark(w, [ITEM, ITEM])),
    "an item without an answer": ("benchmark-item", lambda w: benchmark(w, [{**ITEM, "answer": None}])),
    "choices that are equal": ("benchmark-item", lambda w: benchmark(w, [{**ITEM, "choices": ["fig", "fig"]}])),
    "an item beyond the positions": (
        "benchmark-too-long", lambda w: benchmark(w, [{**ITEM, "question": "What is red? " * 99}]),
    ),
}  # fmt: skip


@pytest.fixture(params=["as it is", "reworded"])
def reworded(request, monkeypatch):
    """Once with every message and remedy in other words: codes were guessed from them."""
    if request.param == "as it is":
        return
    made = Problem.__post_init__

    def in_other_words(problem):
        made(problem)
        object.__setattr__(problem, "message", f"is otherwise ({len(problem.message)}).")
        if not problem.remedy.endswith("]"):  # of the error, which has the code there
            object.__setattr__(problem, "remedy", "Do otherwise.")

    monkeypatch.setattr(Problem, "__post_init__", in_other_words)
    monkeypatch.setattr(conversion, "shortened", lambda reason: f"is otherwise ({len(reason)})")


@pytest.mark.usefixtures("reworded")
@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_the_code_that_says_why(name, tiny_model_dir, chat_rows_file, random_adapter, tmp_path):
    code, make = CASES[name]
    (tmp_path / "world").mkdir()
    made = make(World(tmp_path / "world", tiny_model_dir, random_adapter))
    run = made if isinstance(made, Run) else Run(made)
    result = Checking(tiny_model_dir, chat_rows_file)(run.method, run.options, **run.overrides)
    assert codes(result) == set(code.split()), result.errors
    with pytest.raises(ThriftuneError) as caught:
        result.require_ok()
    assert isinstance(caught.value, TransientError) == (code == "hub-unreachable")
    for found in result.errors:
        assert f"[{found.code}]" in str(caught.value)
        assert found.field
        assert found.message.endswith("."), found.message
        assert str(tmp_path / "model") not in found.message


def test_there_are_enough_cases_and_every_code_but_the_hub_s_has_one():
    assert len(CASES) >= 30
    refused = {code for codes, _make in CASES.values() for code in codes.split()}
    errors = {code for code, (severity, _meaning) in CODES.items() if severity == "error"}
    # test_preflight_hub.py and test_preflight_resuming.py have these.
    elsewhere = {
        "model-gated", "model-revision-not-found", "data-gated", "data-revision-not-found", "data-split-not-found",
        "hub-token-refused", "publish-no-write-access", "checkpoint-not-found", "checkpoint-differs",
        "config-invalid", "input-unusable", "training-diverged", "budget-spent", "trial-stopped",
        "training-no-progress", "checkpoints-in-use", "result-missing", "gate-failed",  # of other tasks
        # tests/preflight/test_preflight_exports.py and tests/exporting have these.
        "export-not-covered", "export-differs", "result-differs",
    }  # fmt: skip
    of_pods = {code for code in errors if code.startswith(("gpu-", "pod-"))}  # tests/test_pods.py has these
    assert errors - refused - of_pods == elsewhere
