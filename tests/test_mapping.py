"""Map tasks as Flyte gets them."""

from conftest import run_dict
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile
from planning import compiled
from planning import nodes_of as nodes_of_part

from tasks.benchmark import benchmark_shard
from tasks.generate_parts import Asked
from tasks.mapping import mapped
from thriftune.config import RunConfig
from thriftune.models.answering import Sampling
from thriftune.planning import catalogue, planner
from workflows.finetune import train_on_plan
from workflows.generate import answer_parts

VERSIONS = {"model_version": "1", "tokenizer_version": "1", "data_version": "1", "table": None}
BENCHMARKS = '{"general-mini": "1", "held_out": "1"}'


def run(**overrides) -> RunConfig:
    asked = {
        "model": {"source": "meta-llama/Llama-2-7b-hf"},
        "hardware": {"device": "T4"},
        "training": {"precision": "fp16"},
        "benchmarks": {"tasks": ["general-mini", "held_out"], "shards": 3, "parallel": 4},
    }
    return RunConfig.model_validate(run_dict("qlora", **{**asked, **overrides}))


def nodes_of(config: RunConfig, upload: str | None = None) -> list:
    plan = planner.plan(config, catalogue.load())
    return compiled(train_on_plan, config, plan, upload, **VERSIONS, benchmarks_version=BENCHMARKS)


def test_a_map_task_has_one_name_however_many_run_at_a_time():
    """Flyte's cache knows results by it: another `parallel` measured everything anew."""
    assert mapped(benchmark_shard, 2).name == mapped(benchmark_shard, None).name == f"{benchmark_shard.name}_map"


def test_shards_have_the_node_that_was_planned_and_their_own_tries():
    config = run()
    node = planner.plan(config, catalogue.load()).benchmarks
    arrays = [each.array_node for each in nodes_of(config) if each.array_node]
    assert len(arrays) == 2, "the base, and the result"
    for array in arrays:
        overrides = array.node.task_node.overrides
        assert overrides.pod_template.pod_spec["nodeSelector"] == {"node.kubernetes.io/instance-type": node.instance}
        asked = {one.name: one.value for one in overrides.resources.requests}
        assert str(node.request.gpus) in asked.values()
        assert overrides.extended_resources.gpu_accelerator.device == "nvidia-tesla-t4"
        assert array.node.metadata.retries.retries > 0


def test_the_base_is_measured_beside_the_training_and_the_result_after_it():
    nodes = {each.id: each for each in nodes_of(run())}
    arrays = [name for name, each in nodes.items() if each.array_node]
    (training,) = [name for name, each in nodes.items() if each.metadata.name.endswith("train_in_one_process")]

    def needs(name: str) -> set[str]:
        return {other for each in nodes[name].upstream_node_ids for other in (each, *needs(each))}

    assert [training in needs(name) for name in arrays] == [False, True]
    assert arrays[0] not in needs(training)


def test_a_run_without_benchmarks_has_no_node_of_them():
    names = {each.metadata.name for each in nodes_of(run(benchmarks=None))}
    assert not [name for name in names if "benchmark" in name]


def test_the_uploaded_code_is_unpacked_once():
    """flytekit put the command that does it twice before the task's own."""
    arrays = [each.array_node for each in nodes_of(run(), upload="s3://code.tar.gz") if each.array_node]
    assert len(arrays) == 2
    for array in arrays:
        command = array.node.task_node.overrides.pod_template.pod_spec["containers"][0]["args"]
        assert command.count("pyflyte-fast-execute") == 1
        own = command[command.index("--") + 1 :]
        assert [own[0], own[2]] == ["env", "pyflyte-map-execute"]


def test_parts_of_a_file_of_prompts_are_answered_at_most_so_many_at_a_time_and_then_joined():
    parts = [FlyteFile(f"s3://b/part-{number}.jsonl") for number in range(3)]
    named = {"one": FlyteDirectory("s3://b/one"), "two": FlyteDirectory("s3://b/two")}
    asked = Asked(Sampling(8), quantize=True, batch=4)
    inputs = {"model_dir": FlyteDirectory("s3://b/model"), "parts": parts, "keys": ["a", "b", "c"], "named": named}
    nodes = nodes_of_part(answer_parts, **inputs, asked=asked, parallel=2, output_format="jsonl")
    (answering,) = [node for node in nodes if node.array_node]
    (joining,) = [node for node in nodes if not node.array_node]
    assert answering.array_node.to_flyte_idl().parallelism == 2
    assert joining.upstream_node_ids == [answering.id]
    bound = {one.var: one.binding for one in answering.inputs}
    keys = [one.scalar.primitive.string_value for one in bound["cache_key"].collection.bindings]
    assert len(set(keys)) == 3
    assert bound["adapters"].map.bindings.keys() == {"one", "two"}
