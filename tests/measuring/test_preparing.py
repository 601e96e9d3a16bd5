"""Benchmarks are made ready once, where there is a hub; after that no hub is asked."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fake_hub import COMMIT, fake_hub
from local_tasks import in_parts, prepared, rows, section, write_jsonl, write_task

from thriftune.errors import ConfigError, DataError, UserError
from thriftune.inference.benchmarks import harness_data, preparing
from thriftune.inference.benchmarks.measuring import Settings
from thriftune.inference.benchmarks.prepared import PreparedBenchmarks

FOLDER = Path(__file__).parent
LINES = [{"id": str(n), "question": f"{n}?", "choices": ["a", "b"], "answer": 0} for n in range(5)]
FUNCTION = "def text(doc):\n    return 'Asked: ' + doc['question']\n"


@pytest.fixture(scope="module")
def by_hub(tmp_path_factory):
    """What preparing tasks of datasets on a hub came to, what the hub was asked, and where they are."""
    folder = tmp_path_factory.mktemp("hub")
    options = {
        "dataset_kwargs": None, "training_split": None, "test_split": "train", "output_type": "generate_until",
        "doc_to_text": "{{messages[0].content}}", "doc_to_target": "{{messages[1].content}}", "doc_to_choice": None,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    }  # fmt: skip
    for name in ("good", "missing", "gated", "broken"):
        write_task(folder, f"of_{name}", dataset_path=f"owner/{name}", **options)
    write_task(folder, "of_split", dataset_path="owner/good", **{**options, "test_split": "nowhere"})
    names = ("good", "missing", "gated", "broken", "split")
    sections = {n: [{"name": f"of_{n}", "file": str(folder / f"of_{n}.yaml"), "limit": 6}] for n in names}
    with fake_hub({}) as (endpoint, seen):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "NO_PROXY": "*", "no_proxy": "*"}
        command = [sys.executable, str(FOLDER / "prepare_client.py"), json.dumps(sections), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert "RESULTS" in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("RESULTS")[2]), seen, folder


def test_a_hub_task_is_measured_without_the_hub(by_hub, tiny_model_dir):
    found, seen, folder = by_hub
    assert list(found["good"]) == ["of_good"]
    assert any(f"owner/good/resolve/{COMMIT}" in asked or COMMIT in asked for asked in seen)
    shutil.rmtree(folder / "hf")  # the hub is gone, and so is what was downloaded
    assert PreparedBenchmarks.read(folder / "good").task("of_good").items == 6
    results = in_parts(folder / "good", "of_good", tiny_model_dir, 2)
    assert len(results.items) == 6
    assert results.items[0].prompt.startswith("<s>[INST] What colour is the sky on day 0?")
    assert results.tasks[0].metrics == {"exact_match": True}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "owner/missing: is not on the hub"),
        ("gated", "owner/gated: is gated"),
        ("broken", "needs owner/broken: the hub did not answer"),
        ("split", "has no split nowhere; it has train"),
    ],
)
def test_what_the_hub_refuses_is_said(name, said, by_hub):
    assert said in by_hub[0][name]


def test_versions_follow_what_a_benchmark_is_made_of(tmp_path):
    file, task = write_jsonl(tmp_path / "mine.jsonl", LINES), write_task(tmp_path, "local_task")
    ours = {"name": "mine", "file": str(file), "format": "multiple_choice"}
    theirs = {"name": "theirs", "file": str(task)}
    found = [preparing.versions(section(ours, theirs, "held_out"))]
    assert found[0] == preparing.versions(section("held_out", theirs, ours))
    found.append(preparing.versions(section({**ours, "few_shot": 1}, {**theirs, "few_shot": 1})))
    found.append(preparing.versions(section({**ours, "limit": 2}, {**theirs, "limit": 2})))
    write_jsonl(file, [{**LINES[0], "answer": 1}, *LINES[1:]])
    write_jsonl(tmp_path / "test.jsonl", rows(8))
    found.append(preparing.versions(section(ours, theirs)))
    task.write_text(task.read_text() + "description: Think first.\n")
    found.append(preparing.versions(section(theirs)) | {"mine": "looked at above"})
    for name in ("mine", "theirs"):
        assert len({versions[name] for versions in found}) == len(found)


def test_general_mini_is_there(tmp_path):
    pytest.importorskip("thriftune.data.general")
    """The first items were all of the first group."""
    benchmarks = PreparedBenchmarks.read(prepared(tmp_path, {"name": "general-mini", "limit": 10}))
    task = benchmarks.task("general-mini")
    assert task.items == 10
    assert set(Counter(item.group for item in benchmarks.items_of(task)[: task.limit]).values()) == {2}


def test_every_problem_of_every_benchmark_is_said(tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", ["{", LINES[0], LINES[0]])
    tasks = [
        {"name": "bad", "file": str(bad), "format": "multiple_choice"},
        {"name": "gone", "file": str(tmp_path / "gone.jsonl"), "format": "multiple_choice"},
        "arc_eazy",
    ]
    with pytest.raises(DataError) as caught:
        preparing.versions(section(*tasks))
    assert [(problem.field, problem.code) for problem in caught.value.problems] == [
        (f"{bad}:1", "benchmark-item"), (f"{bad}:3", "benchmark-item"),
        ("benchmarks.tasks.1.file", "data-not-found"), ("benchmarks.tasks.2", "benchmark-unknown"),
    ]  # fmt: skip
    assert "Did you mean arc_easy" in caught.value.problems[-1].remedy


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("held-out", "held_out"),
        ("General-Mini", "general-mini"),
        ("general_mini", "general-mini"),
        ("hellaswagg", "hellaswag"),
    ],
)
def test_a_name_close_to_one_is_suggested(name, close):
    with pytest.raises(DataError, match=f"Did you mean {close}"):
        preparing.versions(section(name))


def test_code_in_a_task_of_ones_own_runs_only_where_it_is_trusted(tmp_path, tiny_model_dir):
    task = write_task(tmp_path, "with_code")
    (tmp_path / "asking.py").write_text(FUNCTION)
    outer = tmp_path / "outer.yaml"
    outer.write_text("include: with_code.yaml\ndoc_to_text: !function asking.text\n")
    own = {"name": "mine", "file": str(outer)}
    with pytest.raises(DataError, match=r"outer.yaml names Python code .*model.trust_remote_code: true"):
        preparing.versions(section(own))
    place = preparing.prepare(section(own), tmp_path / "prepared", trust_remote_code=True).directory
    task.unlink()
    outer.unlink()
    (tmp_path / "asking.py").unlink()
    item = in_parts(place, "mine", tiny_model_dir, settings=Settings(trust_remote_code=True)).items[0]
    assert item.prompt == "<s>[INST] Asked: What colour is the sea on day 0? [/INST]"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unsafe_code": True}, "it runs the code that a model writes"),
        ({"output_type": "loglikelihood_rolling"}, "its metrics are of a whole set of texts"),
        ({"metric_list": [{"metric": "mcc"}]}, "has no metric that is the mean of a number per item"),
        ({"doc_to_image": "image"}, "it needs images or sound"),
        ({"dataset_path": None}, "it names no dataset"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "it loads metrics from the hub"),
        ({"test_split": None, "validation_split": "nowhere"}, "has no split nowhere; it has test, train"),
        ({"doc_to_target": "{{nothing.at.all}}"}, "lm-evaluation-harness cannot build it"),
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}, "training_split": None}, "gone.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(changes, said, tmp_path):
    file = write_task(tmp_path, "local_task", **changes)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, {"name": "mine", "file": str(file)})
    assert said in str(caught.value)


def test_rows_that_do_not_go_together_are_said(tmp_path):
    file = write_task(tmp_path, "local_task")
    write_jsonl(tmp_path / "test.jsonl", [{"other": 1}])
    with pytest.raises(DataError, match="the data of local_task cannot be loaded: .*Cast"):
        prepared(tmp_path, {"name": "mine", "file": str(file)})
    write_jsonl(tmp_path / "test.jsonl", ["{"])
    with pytest.raises(DataError, match="the data of local_task cannot be loaded: "):
        prepared(tmp_path, {"name": "mine", "file": str(file)})


def test_a_file_of_another_folder_cannot_be_included(tmp_path):
    write_task(tmp_path, "base")
    (tmp_path / "inner").mkdir()
    inner = tmp_path / "inner" / "mine.yaml"
    inner.write_text("include: ../base.yaml\ntask: mine\n")
    with pytest.raises(DataError, match="includes base.yaml of another folder"):
        preparing.versions(section({"name": "mine", "file": str(inner)}))


def test_a_task_without_examples_takes_none(tmp_path):
    file = write_task(tmp_path, "local_task", num_fewshot=0)
    with pytest.raises(DataError, match="is made to be asked without examples"):
        preparing.versions(section({"name": "mine", "file": str(file), "few_shot": 1}))


def test_names_of_the_harness_stand_for_its_tasks():
    def leaves(name):
        from thriftune.config.benchmarks import BenchmarkTask
        from thriftune.inference.benchmarks import harness_tasks

        return harness_tasks.leaves_of(BenchmarkTask(name=name), "benchmarks.tasks.0")

    assert [leaf.name for leaf in leaves("arc_easy")] == ["arc_easy"]
    assert [leaf.name for leaf in leaves("ai2_arc")] == ["arc_challenge", "arc_easy"]
    subjects = [leaf.name for leaf in leaves("mmlu")]
    assert len(subjects) == len(set(subjects)) == 57
    assert "mmlu_anatomy" in subjects
    with pytest.raises(ConfigError, match="is written in Python"):
        leaves("squadv2")


def test_names_are_found_without_reading_every_task():
    from thriftune.inference.benchmarks import harness_tasks

    assert [harness_tasks.is_shipped(name) for name in ("arc_easy", "mmlu", "mine", "arc.easy")] == [1, 1, 0, 0]


def test_a_metric_that_is_no_mean_is_left_out_by_name(tmp_path, tiny_model_dir, caplog):
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}, {"metric": "mcc"}, {"metric": "f1"}]
    file = write_task(tmp_path, "local_task", metric_list=metrics)
    place = prepared(tmp_path, {"name": "mine", "file": str(file)})
    assert in_parts(place, "mine", tiny_model_dir).tasks[0].metrics == {"acc": True}
    assert "mine: f1, mcc left out" in caplog.text or "mine: mcc, f1 left out" in caplog.text


def test_a_long_item_of_the_harness_is_named_and_not_cut(tmp_path, tiny_model_dir):
    file = write_task(tmp_path, "local_task", doc_to_text="{{question * 60}}")
    place = prepared(tmp_path, {"name": "mine", "file": str(file)})
    with pytest.raises(DataError, match=r"local_task/0: needs \d+ tokens, and the model has 256 positions"):
        in_parts(place, "mine", tiny_model_dir)
    write_task(
        tmp_path, "written", output_type="generate_until", doc_to_choice=None, doc_to_target="said", metric_list=None
    )
    other = preparing.prepare(
        section({"name": "w", "file": str(tmp_path / "written.yaml")}), tmp_path / "other"
    ).directory
    with pytest.raises(DataError, match=r"written/0: needs \d+ tokens"):
        in_parts(other, "w", tiny_model_dir, settings=Settings(max_new_tokens=250))


def test_draws_of_a_task_depend_on_seed_and_prompt_alone(tmp_path, tiny_model_dir):
    options = {
        "output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "said", "metric_list": None,
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 8, "do_sample": True, "temperature": 0.9, "top_k": 50},
        "repeats": 2,
    }  # fmt: skip
    file = write_task(tmp_path, "drawn", **options)
    place = prepared(tmp_path, {"name": "mine", "file": str(file)})
    whole = in_parts(place, "mine", tiny_model_dir, 1, Settings(seed=1))
    assert whole.items == in_parts(place, "mine", tiny_model_dir, 3, Settings(seed=1, batch=1)).items
    others = in_parts(place, "mine", tiny_model_dir, 1, Settings(seed=2))
    assert all(one.answer != other.answer for one, other in zip(whole.items, others.items, strict=True))


def test_only_the_splits_that_are_used_are_kept(tmp_path):
    file = write_task(tmp_path, "local_task")
    (none,) = PreparedBenchmarks.read(prepared(tmp_path, {"name": "mine", "file": str(file)})).task("mine").leaves
    assert list(none.data) == ["test"]
    (shown,) = (
        PreparedBenchmarks.read(prepared(tmp_path, {"name": "mine", "file": str(file), "few_shot": 1}))
        .task("mine")
        .leaves
    )
    assert list(shown.data) == ["test", "train"]
    assert harness_data.used_splits({"num_fewshot": 0, "test_split": "a", "training_split": "b"}) == ["test_split"]


def test_the_version_of_data_in_a_folder_is_that_of_its_files(tmp_path):
    """It was the name of the folder: results of other items were found again."""
    (tmp_path / "items").mkdir()
    file = write_task(tmp_path, "foldered", dataset_path=str(tmp_path / "items"), dataset_kwargs=None)
    found = []
    for count in (3, 4):
        for split in ("train", "test"):
            write_jsonl(tmp_path / "items" / f"{split}.jsonl", rows(count))
        found.append(preparing.versions(section({"name": "foldered", "file": str(file)}))["foldered"])
    assert found[0] != found[1]
