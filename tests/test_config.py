"""Every mistake a person can make in a run file is refused, with its field, its value and a remedy."""

import json
import pickle
import typing
from datetime import date

import pytest
from pydantic import BaseModel, ValidationError

from thriftune.config import HardwareConfig, RunConfig, Section, benchmark_run, sweep
from thriftune.config.choices import METHODS, STRATEGIES, strategies_of
from thriftune.config.rules import NODE_COUNTS
from thriftune.errors import ConfigError


def problems_of(content) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        RunConfig.model_validate(content)
    fields = [problem.field for problem in caught.value.problems]
    assert len(fields) == len(set(fields)), "a field is reported twice"
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_the_smallest_file_is_valid_and_gets_the_documented_defaults():
    run = RunConfig.model_validate(
        {
            "name": "a",
            "method": "full",
            "model": {"source": "owner/model"},
            "data": {"source": "rows.jsonl", "format": "text"},
        }
    )
    assert run.zero is None
    assert run.zero_or_default.config == "auto"
    assert run.hardware == HardwareConfig()
    assert run.strategy == "auto"
    assert run.training.micro_batch is None
    assert run.lora_or_default.rank == 64
    assert run.training.precision == "auto"
    assert run.publish is None


@pytest.mark.parametrize(
    ("overrides", "field", "texts"),
    [
        ({"training": {"micro_bach": 4}}, "training.micro_bach", ["4", "is not a key", "'micro_batch'"]),
        ({"trainig": {"epochs": 1}}, "trainig", ["epochs", "is not a key", "'training'"]),
        ({"data": {"zzzz": "x"}}, "data.zzzz", ["'x'", "The keys here are source, format"]),
        ({"name": "Not Valid"}, "name", ["'Not Valid'", "lower-case letters"]),
        ({"name": "a" * 41}, "name", ["aaaa", "at most 40"]),
        ({"seed": -1}, "seed", ["-1", "greater than or equal to 0"]),
        ({"method": "dora"}, "method", ["'dora'", "'full', 'partial', 'lora', 'qlora', 'prefix' or 'llama_adapter'"]),
        (
            {"strategy": "pipeline"},
            "strategy",
            ["'pipeline'", "'auto', 'zero', 'fsdp', 'ddp', 'single' or 'layers'", "How weights are placed"],
        ),
        ({"model": {"source": ""}}, "model.source", ["''", "Hub id"]),
        ({"model": "owner/model"}, "model", ["'owner/model'", "The base model."]),
        ({"data": {"format": "csv"}}, "data.format", ["'csv'", "'alpaca', 'prompt_completion', 'chat', 'sharegpt', "]),
        (
            {"data": {"source": 3}},
            "data.source",
            ["3", "valid string", "to keep it as text: source: '...'", "Hub"],
        ),
        ({"model": {"revision": 0o12345}}, "model.revision", ["5349", "(octal)", "revision: '...'", "Commit, tag"]),
        ({"model": {"revision": 1.5}}, "model.revision", ["1.5", "as a number; put it in quotes"]),
        ({"name": date(2024, 1, 5)}, "name", ["2024", "as a date; put it in quotes", "name: '...'"]),
        ({"name": None}, "name", ["None", "null, ~ and an empty value as nothing"]),
        ({"name": True}, "name", ["True", "yes, no, on, off, true and false as truth values"]),
        ({"data": {"columns": {"input": False}}}, "data.columns", ["False", "in quotes to keep it as text. "]),
        ({"data": {"columns": {"input": 45000}}}, "data.columns", ["45000", "has colons (base 60)"]),
        ({"evaluation": {"prompts": ["a", True]}}, "evaluation.prompts.1", ["True", "in quotes to keep it as text. "]),
        ({"data": {"max_rows": "1e6"}}, "data.max_rows", ["'1e6'", "as text; write max_rows: 1000000. Use only"]),
        ({"data": {"max_rows": "0o17"}}, "data.max_rows", ["'0o17'", "write max_rows: 15."]),
        ({"data": {"max_rows": "10,000"}}, "data.max_rows", ["'10,000'", "write max_rows: 10000."]),
        (
            {"data": {"sources": "rows.jsonl"}},
            "data.sources",
            ["'rows.jsonl'", "should be a list", "a list of {source"],
        ),
        ({"data": {"template": ""}}, "data.template", ["''", "at least 1 character", "columns in braces"]),
        ({"data": {"sample_by": "word"}}, "data.sample_by", ["'word'", "'line', 'paragraph' or 'document'"]),
        ({"data": {"long_rows": "cut"}}, "data.long_rows", ["'cut'", "'truncate', 'drop' or 'split'"]),
        ({"seed": 2**31}, "seed", ["2147483648", "less than 2147483648"]),  # a traceback of numpy once training began
        ({"data": {"max_rejected": 2}}, "data.max_rejected", ["2", "less than or equal to 1"]),
        ({"data": {"special_tokens": "drop"}}, "data.special_tokens", ["'drop'", "'reject' or 'keep'"]),
        ({"data": {"max_length": 0}}, "data.max_length", ["0", "greater than or equal to 2", "tokens"]),
        ({"data": {"max_rows": 0}}, "data.max_rows", ["0", "greater than 0"]),
        ({"data": {"validation_share": 1}}, "data.validation_share", ["1", "less than 1"]),
        ({"data": {"validation_share": 0}}, "data.validation_share", ["0", "greater than 0"]),
        ({"data": {"train_on_inputs": "perhaps"}}, "data.train_on_inputs", ["'perhaps'", "boolean"]),
        ({"hardware": {"device": 4090}}, "hardware.device", ["4090", "in quotes", "Kind of GPU"]),
        ({"hardware": {"nodes": 0}}, "hardware.nodes", ["0", "Number of machines"]),
        ({"hardware": {"devices_per_node": 1.5}}, "hardware.devices_per_node", ["1.5", "valid integer"]),
        ({"training": {"global_batch": "many"}}, "training.global_batch", ["'many'", "valid integer", "Rows per"]),
        ({"training": {"micro_batch": -2}}, "training.micro_batch", ["-2", "greater than 0"]),
        ({"training": {"epochs": 0}}, "training.epochs", ["0", "greater than 0"]),
        ({"training": {"max_steps": 0}}, "training.max_steps", ["0", "Optimizer steps"]),
        ({"training": {"learning_rate": 0}}, "training.learning_rate", ["0", "Peak learning rate"]),
        ({"training": {"scheduler": "step"}}, "training.scheduler", ["'step'", "'cosine'"]),
        ({"training": {"warmup_share": 1}}, "training.warmup_share", ["1", "less than 1"]),
        ({"training": {"weight_decay": -0.1}}, "training.weight_decay", ["-0.1", "greater than or equal to 0"]),
        ({"training": {"max_grad_norm": 0}}, "training.max_grad_norm", ["0", "greater than 0"]),
        ({"training": {"optimizer": "sgd"}}, "training.optimizer", ["'sgd'", "'adamw'"]),
        ({"training": {"precision": "int8"}}, "training.precision", ["'int8'", "'bf16'"]),
        ({"training": {"save_dtype": "int8"}}, "training.save_dtype", ["'int8'", "'fp16'"]),
        ({"training": {"log_every": 0}}, "training.log_every", ["0", "Optimizer steps between"]),
        ({"zero": {"config": 3}}, "zero.config", ["3", "among the files in deepspeed_configs/"]),
        ({"evaluation": {"batch": 0}}, "evaluation.batch", ["0", "Most rows per forward pass"]),
        ({"evaluation": {"prompts": "one"}}, "evaluation.prompts", ["'one'", "Questions"]),
        ({"publish": {"repository": "no-owner"}}, "publish.repository", ["'no-owner'", "owner/name"]),
        ({"publish": {}}, "publish.repository", ["is missing", "owner/name"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_cannot_be_is_refused_with_field_value_and_remedy(run_file, overrides, field, texts):
    problems = problems_of(run_file(**overrides))
    assert field in problems
    for text in texts:
        assert text in problems[field]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ({"rank": 0}, "lora.rank", "0"),
        ({"alpha": 0}, "lora.alpha", "0"),
        ({"dropout": 1}, "lora.dropout", "1"),
        ({"target_modules": []}, "lora.target_modules", "[]"),
        ({"target_modules": "q_proj"}, "lora.target_modules", "'q_proj'"),
        ({"r": 8}, "lora.r", "8"),
        ({"four_bit": True}, "lora.four_bit", "True"),
    ],
)
def test_a_wrong_lora_value_is_refused(run_file, section, field, value):
    assert value in problems_of(run_file("qlora", lora=section))[field]


@pytest.mark.parametrize("key", ["name", "method", "model", "data"])
def test_a_missing_section_is_named_with_what_it_is_for(run_file, key):
    content = run_file()
    del content[key]
    problem = problems_of(content)[key]
    assert "is missing. Add it: " in problem
    assert not problem.endswith("Add it: ")


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_is_not_a_mapping_is_refused(content):
    assert list(problems_of(content)) == ["the file"]


def test_a_long_value_is_shortened_in_the_message(run_file):
    problem = problems_of(run_file(training={"micro_batch": "x" * 500}))["training.micro_batch"]
    assert "..." in problem
    assert len(problem) < 300


@pytest.mark.parametrize(
    ("method", "overrides", "field", "texts"),
    [
        ("full", {"lora": {"rank": 8}}, "lora", ["method lora or qlora", "has method full", "Remove it"]),
        (
            "qlora",
            {"zero": {"config": "zero2"}, "strategy": "ddp"},
            "zero",
            ["belongs to strategy zero", "has strategy ddp", "set strategy: zero"],
        ),
        (
            "full",
            {"fsdp": {"cpu_offload": True}, "strategy": "zero"},
            "fsdp",
            ["belongs to strategy fsdp", "has strategy zero", "set strategy: fsdp"],
        ),
        (
            "full",
            {"zero": {"config": "zero2"}, "strategy": "single"},
            "zero",
            ["belongs to strategy zero", "has strategy single", "Remove it, or set strategy: zero"],
        ),
        (
            "lora",
            {"lora": {"double_quantization": False}},
            "lora.double_quantization",
            ["belongs to method qlora", "has method lora", "Remove it, or set method: qlora"],
        ),
        (
            "lora",
            {"strategy": "layers", "hardware": {"nodes": 2, "device": "T4"}},
            "hardware.nodes",
            ["2", "strategy layers runs on the GPUs of one node", "nodes: 1"],
        ),
        (
            "full",
            {"strategy": "single", "hardware": {"nodes": 2, "device": "T4"}},
            "hardware.nodes",
            ["2", "strategy single runs on the GPUs of one node", "nodes: 1"],
        ),
        (
            "full",
            {"strategy": "single", "hardware": {"devices_per_node": 2, "device": "T4"}},
            "hardware.devices_per_node",
            ["2", "strategy single uses one device", "devices_per_node: 1, or another strategy"],
        ),
        (
            "qlora",
            {"strategy": "single", "hardware": {"devices_per_node": 4, "device": "T4"}},
            "hardware.devices_per_node",
            ["4", "strategy single uses one device", "devices_per_node: 1, or another strategy"],
        ),
        (
            "full",
            {"strategy": "single", "hardware": {"devices_per_node": 2}},
            "hardware.devices_per_node",
            ["2", "strategy single on the CPU is one process", "devices_per_node: 1"],
        ),
        (
            "lora",
            {"strategy": "layers", "hardware": {"devices_per_node": 2}},
            "hardware.devices_per_node",
            ["2", "strategy layers on the CPU is one process", "devices_per_node: 1"],
        ),
        (
            "full",
            {"strategy": "zero", "training": {"optimizer": "paged_adamw_8bit"}},
            "training.optimizer",
            ["paged_adamw_8bit", "ZeRO partitions AdamW's states itself", "Use 'adamw'"],
        ),
        (
            "full",
            {"hardware": {"nodes": 5}, "training": {"global_batch": 10, "micro_batch": 1}},
            "hardware.nodes",
            ["5", ", ".join(map(str, NODE_COUNTS))],
        ),
        (
            "full",
            {"hardware": {"devices_per_node": 3}, "training": {"global_batch": 16}},
            "training.global_batch",
            ["16", "multiple of 6", "12 or 18"],
        ),
        (
            "full",
            {"zero": {"config": "zero2"}, "training": {"optimizer": "adamw_8bit"}},
            "training.optimizer",
            ["adamw_8bit", "Use 'adamw', or strategy: ddp or single"],
        ),
        (
            "full",
            {"zero": {"config": {"train_batch_size": 8, "zero_optimization": {"stage": 3}}}},
            "zero.config.train_batch_size",
            ["8", "training.global_batch", "Remove the key"],
        ),
        (
            "full",
            {"zero": {"config": {"zero_optimization": {"stage": 9}}}},
            "zero.config.zero_optimization.stage",
            ["9", "0, 1, 2 or 3"],
        ),
        ("full", {"zero": {"config": {}}}, "zero.config.zero_optimization", ["is missing", "stage: 3"]),
    ],
)
def test_fields_that_contradict_each_other_are_refused(run_file, method, overrides, field, texts):
    problems = problems_of(run_file(method, **overrides))
    assert list(problems) == [field]
    for text in texts:
        assert text in problems[field]


# Sections that a method does not do without.
OWN = {"partial": {"partial": {"train": ["head"]}}}
REFUSED = [
    (method, strategy) for strategy, facts in STRATEGIES.items() for method in METHODS if method in facts.refuses
]
TRAINED = [(m, s) for s in STRATEGIES for m in METHODS if (m, s) not in REFUSED]


def test_the_pairs_of_method_and_strategy_that_are_refused_are_these():
    little = ["llama_adapter", "prefix"]
    expected = [(method, strategy) for method in little for strategy in ("fsdp", "layers", "zero")]
    assert sorted(REFUSED) == sorted([("full", "layers"), ("partial", "layers"), *expected])


@pytest.mark.parametrize(("method", "strategy"), REFUSED)
def test_a_strategy_that_cannot_train_the_method_is_refused_with_the_reason_and_the_others(run_file, method, strategy):
    problems = problems_of(run_file(method, strategy=strategy, **OWN.get(method, {})))
    assert list(problems) == ["strategy"]
    assert f"strategy = {strategy}: cannot train method {method}: " in problems["strategy"]
    assert STRATEGIES[strategy].refuses[method] in problems["strategy"]
    others = [other for other_method, other in TRAINED if other_method == method]
    assert problems["strategy"].endswith(f"Use auto, or one of {', '.join(others)}.")


@pytest.mark.parametrize(("method", "strategy"), [*TRAINED, *((method, "auto") for method in METHODS)])
def test_the_other_pairs_are_valid(run_config, method, strategy):
    config = run_config(method, strategy=strategy, **OWN.get(method, {}))
    assert (config.method, config.strategy) == (method, strategy)
    named = strategies_of(config)
    assert sorted(named) == ([strategy] if strategy != "auto" else sorted(s for m, s in TRAINED if m == method))


def test_what_is_divided_is_tried_first_where_weights_train_and_copies_first_where_adapters_do(run_config):
    assert strategies_of(run_config("full")) == ("zero", "fsdp", "ddp", "single")
    assert strategies_of(run_config("full", zero={"config": "zero3"})) == ("zero",)
    assert strategies_of(run_config("full", zero={})) == ("zero",)
    assert strategies_of(run_config("full", fsdp={"cpu_offload": True})) == ("fsdp",)
    assert strategies_of(run_config("lora")) == ("ddp", "single", "zero", "fsdp", "layers")
    assert strategies_of(run_config("prefix")) == ("ddp", "single")


def test_auto_tries_what_suits_the_machines_and_the_optimizer_that_are_named(run_config):
    """One that cannot use them was tried, and made the whole file wrong."""
    eight_bit = {"optimizer": "adamw_8bit"}
    assert strategies_of(run_config("full", training=eight_bit)) == ("ddp", "single")
    assert strategies_of(run_config("qlora", hardware={"device": "T4", "nodes": 2})) == ("ddp", "zero", "fsdp")
    assert strategies_of(run_config("qlora", hardware={"device": "CPU", "devices_per_node": 2})) == (
        "ddp", "zero", "fsdp",
    )  # fmt: skip
    assert strategies_of(run_config("qlora", hardware={"device": "T4", "devices_per_node": 2})) == (
        "ddp", "zero", "fsdp", "layers",
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["zero", "fsdp"])
def test_dora_is_refused_on_a_base_in_four_bits_that_is_divided(run_file, run_config, strategy):
    """It was found out on the machines, at the first step."""
    dora = {"variant": "dora"}
    (problem,) = problems_of(run_file("qlora", strategy=strategy, lora=dora)).items()
    assert problem[0] == "lora.variant"
    assert strategy in problem[1]
    assert "ddp" in problem[1]
    assert run_config("lora", strategy=strategy, lora=dora).lora_or_default.variant == "dora"
    assert strategy not in strategies_of(run_config("qlora", lora=dora))


def test_of_a_pair_that_is_refused_what_goes_with_neither_is_said_too(run_file):
    content = run_file("prefix", strategy="zero", zero={"config": "zero2"}, hardware={"devices_per_node": 2})
    assert set(problems_of(content)) == {"strategy", "zero"}


@pytest.mark.parametrize("value", [True, False])
def test_the_old_key_of_four_bits_is_refused_with_the_method_to_write(run_file, value):
    """It was a key of the section; the method says it now."""
    problems = problems_of(run_file("qlora", lora={"four_bit": value}))
    assert list(problems) == ["lora.four_bit"]
    assert "Write method: qlora for a base model in 4 bits, and method: lora for one in" in problems["lora.four_bit"]


@pytest.mark.parametrize(("method", "strategy"), [("lora", "single"), ("qlora", "layers"), ("full", "single")])
def test_without_zero_the_8_bit_optimizers_are_valid(run_config, method, strategy):
    config = run_config(method, strategy=strategy, training={"optimizer": "adamw_8bit"})
    assert config.training.optimizer == "adamw_8bit"


def test_a_batch_is_cut_over_processes_and_layers_have_one(run_config):
    hardware = {"device": "T4", "devices_per_node": 3}
    config = run_config("qlora", hardware=hardware, training={"global_batch": 4, "micro_batch": 2})
    assert config.hardware.devices_per_node == 3


def test_everything_that_is_wrong_is_reported_at_once(run_file):
    content = run_file(
        model={"revison": "main"},
        data={"max_length": "long"},
        hardware={"device": "T4", "nodes": 5},
        training={"global_batch": 7, "lerning_rate": 1},
        lora={"rank": 8},
        evaluation={"batch": 0},
    )
    assert set(problems_of(content)) == {
        "model.revison",
        "data.max_length",
        "training.lerning_rate",
        "evaluation.batch",
        "lora",
        "hardware.nodes",
        "training.global_batch",
    }


def test_a_wrong_name_and_a_wrong_combination_are_reported_together(run_file):
    """The name has no default, so the rules can only run when something valid stands in for it."""
    problems = problems_of(run_file("full", name="No Good", lora={"rank": 8}))
    assert set(problems) == {"name", "lora"}


def test_a_misspelt_key_brings_no_problem_with_a_value_nobody_wrote(run_file):
    content = run_file(training={"micro_batch": 32, "globl_batch": 64})
    del content["training"]["global_batch"]
    assert set(problems_of(content)) == {"training.globl_batch"}


def test_a_wrong_item_of_a_list_and_a_wrong_combination_are_reported_together(run_file):
    problems = problems_of(run_file(evaluation={"prompts": [1]}, training={"global_batch": 5}))
    assert set(problems) == {"evaluation.prompts.0", "training.global_batch"}


def test_inline_zero_and_other_rules_are_reported_together(run_file):
    content = run_file(
        zero={"config": {"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}},
        training={"global_batch": 5},
    )
    assert set(problems_of(content)) == {"zero.config.fp16", "training.global_batch"}


def test_auto_in_an_inline_zero_configuration_decides_nothing(run_config):
    run = run_config(
        zero={"config": {"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}}
    )
    assert run.zero.config["zero_optimization"] == {"stage": 1}


def test_nothing_changes_after_reading(run_config):
    run = run_config()
    with pytest.raises(ValidationError):
        run.seed = 1
    with pytest.raises(ValidationError):
        run.training.micro_batch = 1


@pytest.mark.parametrize("method", METHODS)
def test_a_run_survives_json_and_pickle(run_config, method):
    lora = {
        "target_modules": ["q_proj", "v_proj"],
        "rank": 4,
        "rank_patterns": [{"pattern": "q_proj", "rank": 2}],
        "modules_to_save": ["lm_head"],
    }
    sections = {
        "full": {"zero": {"config": {"zero_optimization": {"stage": 2}}}, "fsdp": None},
        "partial": {"partial": {"train": [{"last_layers": 2}, "norms", "*.mlp.*"], "add_layers": 1}, "fsdp": {}},
        "prefix": {"prefix": {"virtual_tokens": 5}},
        "llama_adapter": {"llama_adapter": {"layers": 2}},
    }.get(method, {"strategy": "layers", "lora": lora})
    run = run_config(method, publish={"repository": "me/it"}, evaluation={"prompts": ["Why?"]}, **sections)
    assert_survives(run)


def test_a_run_of_several_sources_survives_json_and_pickle(run_file):
    """Every key is in the JSON of a run: those of a single source were once taken for written ones."""
    content = run_file()
    content["data"] = {"sources": [{"source": "a.jsonl", "format": "chat"}, {"source": "b.jsonl", "format": "text"}]}
    assert_survives(RunConfig.model_validate(content))


def assert_survives(run):
    assert RunConfig.model_validate_json(run.model_dump_json()) == run
    assert RunConfig.model_validate(json.loads(json.dumps(run.model_dump(mode="json")))) == run
    assert pickle.loads(pickle.dumps(run)) == run


def test_problems_of_a_json_document_are_collected_too(run_file):
    with pytest.raises(ConfigError) as caught:
        RunConfig.model_validate_json(json.dumps(run_file(sed=1, training={"global_batch": 5})))
    assert {p.field for p in caught.value.problems} == {"sed", "training.global_batch"}


def test_the_input_is_left_as_it_was(run_file):
    content = run_file(training={"micro_bach": 1}, name="No Good")
    before = json.dumps(content)
    problems_of(content)
    assert json.dumps(content) == before


def test_a_number_that_yaml_reads_as_text_is_a_number(run_config):
    """YAML 1.1 reads `2e-5`, without a dot, as a string."""
    assert run_config(training={"learning_rate": "2e-5"}).training.learning_rate == 2e-5


def sections() -> list[type[BaseModel]]:
    """Every section of every kind of file: those of benchmarks and sweeps have modules of their own."""
    assert benchmark_run.BenchmarkRun
    assert sweep.SweepRun
    found, waiting = [], [Section]
    while waiting:
        below = [s for s in waiting.pop().__subclasses__() if s.__module__.startswith("thriftune.config")]
        found += below
        waiting += below
    return found


def test_every_key_of_every_section_says_what_it_is():
    assert len(sections()) == 33
    for section in sections():
        assert section.__doc__
        for name, field in section.model_fields.items():
            annotated = [field.annotation, *typing.get_args(field.annotation)]
            is_section = any(isinstance(a, type) and issubclass(a, Section) for a in annotated)
            assert field.description or is_section, f"{section.__name__}.{name}"


def test_every_section_is_closed_and_frozen():
    for section in sections():
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"]


def test_master_weights_may_be_saved_in_fp32(run_config):
    """It was refused: "the weights train in fp16", which is true of their copy only."""
    config = run_config("full", hardware={"device": "T4"}, training={"save_dtype": "fp32"})
    assert config.training.save_dtype == "fp32"


@pytest.mark.parametrize(
    ("method", "sections", "field", "texts"),
    [
        ("full", {"fsdp": {}, "zero": {}}, "fsdp", ["sections of two strategies: zero and fsdp"]),
        (
            "lora",
            {"lora": {"rank_patterns": [{"pattern": "v_proj", "rank": 2}, {"pattern": "v_proj", "rank": 4}]}},
            "lora.rank_patterns",
            ["v_proj", "is there twice"],
        ),
        ("partial", {"partial": {"train": "head"}}, "partial.train", ["should be a list", "Write train: [head]"]),
        ("partial", {"partial": {"train": [2]}}, "partial.train.0", ["no mapping", "`last_layers: 2` (the last two"]),
        (
            "lora",
            {"task": "classification", "classification": {"labels": [0, 1]}, "data": {"format": "labelled"}},
            "classification.labels.0",
            ["valid string", "put it in quotes"],
        ),
    ],
)
def test_what_overlooks_or_repeats_itself_is_said_once(run_file, method, sections, field, texts):
    """The second of two sections was not read; a list with a wrong item was also too short, or named nothing."""
    problems = problems_of(run_file(method, **sections))
    assert {name.rpartition(".")[0] if name[-1].isdigit() else name for name in problems} == {
        field.rpartition(".")[0] if field[-1].isdigit() else field
    }
    assert all(text in problems[field] for text in texts), problems[field]
