"""Classification end to end: rules, labelled rows, a new head, real trainings, and what plain transformers reloads."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ranks
from adapting import EXACT_IN_FOUR_BITS
from conftest import run_dict, write_jsonl
from planning import planned

from thriftune.config import ModelConfig, RunConfig
from thriftune.data import prepare
from thriftune.data.examples import RowError
from thriftune.data.labelled import class_of
from thriftune.data.prepared import TRAIN, VALIDATION, load_samples
from thriftune.data.statistics import DataStats
from thriftune.data.tokenization import IGNORED, Tokenization
from thriftune.errors import AdapterError, ConfigError, DataError, ModelSourceError, UserError
from thriftune.hardware import detect_device
from thriftune.inference import evaluation, generation
from thriftune.methods import METHODS
from thriftune.models import architecture, classifier, merging
from thriftune.models.answering import Sampling
from thriftune.models.classifier import Classes
from thriftune.models.completeness import load_causal_lm
from thriftune.models.loading import Placement
from thriftune.models.quantization import FourBit, configuration
from thriftune.models.tokenizer import load_tokenizer
from thriftune.planning.memory.validating import held_by_rows
from thriftune.preflight import data_checks
from thriftune.preflight.rows import Tried
from thriftune.training.held_out import EvalReport, HeldOut, RowLosses, held_out_rows
from thriftune.training.objective import objective_of

WORKER = Path(__file__).parent / "training_worker.py"
LABELS = ("warm", "cold", "neutral")
COLOURS = {
    "warm": ("red", "gold", "pink", "brown"),
    "cold": ("blue", "green", "violet"),
    "neutral": ("grey", "white", "black"),
}
THINGS = ("the sky", "a stone", "the sea", "an apple", "the moon", "a cat")
# A class by a word, in texts of very different lengths, so that passes have padding.
ROWS = [
    {"text": f"{thing} {day}: {' '.join([colour] * (1 + 3 * day))}.", "label": label}
    for day in range(4)
    for thing in THINGS
    for label, colours in COLOURS.items()
    for colour in colours
]
STEPS = 16
RATES = {"full": 3e-3, "partial": 3e-2, "lora": 5e-3, "qlora": 5e-3}
JOBS = {
    "full": ("full", "single", 1, 12),
    "full in passes of two": ("full", "single", 1, 2),
    "full over two ranks": ("full", "fsdp", 2, 3),
    "head alone": ("partial", "single", 1, 12),
    "lora": ("lora", "single", 1, 12),
    "qlora": ("qlora", "single", 1, 12),
}


def run_of(method="full", **overrides):
    """A run file of a classifier."""
    content = run_dict(
        method, task="classification", classification={"labels": list(LABELS)}, data={"format": "labelled"}
    )
    return content | {key: {**content.get(key, {}), **value} for key, value in overrides.items()}


# ---- the run file


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"classification": None}, "classification.labels"),
        ({"task": "causal_lm"}, "classification"),
        ({"classification": {"labels": ["warm", " warm"]}}, "classification.labels"),
        ({"classification": {"labels": ["warm", " "]}}, "classification.labels"),
        ({"data": {"packing": True}}, "data.packing"),
        ({"data": {"long_rows": "split"}}, "data.long_rows"),
        ({"data": {"train_on_inputs": True}}, "data.train_on_inputs"),
        ({"data": {"format": "chat"}}, "data.format"),
        ({"method": "prefix"}, "method"),
        ({"method": "llama_adapter"}, "method"),
    ],
)
def test_a_run_file_that_makes_no_classifier_is_refused(change, field):
    """What packing, pieces of a text or another method would do silently is refused by name."""
    content = run_of()
    content |= {k: {**content[k], **v} if isinstance(v, dict) else v for k, v in change.items()}
    with pytest.raises(ConfigError) as refused:
        RunConfig.model_validate({key: value for key, value in content.items() if value is not None})
    assert field in {problem.field for problem in refused.value.problems}


def test_the_fingerprint_of_the_rows_tells_labels_apart_and_leaves_others_as_they_were():
    """Rows that were numbered by other labels must not be served from a cache."""
    data = RunConfig.model_validate(run_of()).data
    one, other, none = (prepare.fingerprint(data, 0, "v", "t", labels) for labels in (LABELS, LABELS[::-1], ()))
    assert len({one, other, none}) == 3
    assert none == prepare.fingerprint(data, 0, "v", "t")


# ---- rows


@pytest.mark.parametrize(
    ("value", "labels", "number"),
    [
        ("cold", LABELS, 1), (" cold ", LABELS, 1), (2, LABELS, 2), ("2", LABELS, 2), (2.0, LABELS, 2),
        (7, ("7", "3"), 0), ("3", ("7", "3"), 1), (True, ("false", "true"), 1), (-1, ("0", "-1"), 1),
    ],
)  # fmt: skip
def test_a_label_is_a_name_or_its_number(value, labels, number):
    assert class_of(value, labels) == number


@pytest.mark.parametrize(
    ("value", "labels", "reason"),
    [
        ("Cold", LABELS, "holds 'Cold', which is not in"), (3, LABELS, "class 3, but classification.labels has 3"),
        (None, LABELS, "is empty"), (" ", LABELS, "is empty"), (0.5, LABELS, "holds a float"), (1, ("7", "3"), "'1'"),
        (["cold"], LABELS, "holds a list"), (-1, LABELS, "'-1'"), ("9" * 5000, LABELS, "has 3 classes"),
        (math.nan, LABELS, "holds a float"), (math.inf, LABELS, "holds a float"), ("\u0663", LABELS, "which is not in"),
    ],
)  # fmt: skip
def test_a_label_that_is_none_of_them_says_so(value, labels, reason):
    with pytest.raises(RowError, match="column 'label'") as refused:
        class_of(value, labels)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 200


def prepared(folder, rows, tokenizer_dir, labels=LABELS, **data):
    file = write_jsonl(folder / "rows.jsonl", rows)
    config = RunConfig.model_validate(run_of(data={"source": str(file), "validation_share": 0.2, **data}))
    stats = prepare.prepare(
        config.data, seed=0, tokenizer_dir=tokenizer_dir, destination=folder / "dataset", labels=labels
    )
    return config, stats


def test_rows_are_texts_as_the_tokenizer_makes_them_with_a_number_at_the_end(
    tmp_path, tiny_tokenizer_dir, llama_tokenizer
):
    """Every usable row is there once with its class, and every other one is set aside with the reason."""
    bad = [
        {"text": "fine", "label": "lukewarm"}, {"text": "", "label": "cold"}, {"text": "fine", "label": None},
        {"text": "fine </s>", "label": "cold"}, {"text": 3, "label": "cold"},
    ]  # fmt: skip
    same = [{"text": "both", "label": "cold"}, {"text": "both", "label": "warm"}, {"text": "both", "label": "warm"}]
    _, stats = prepared(tmp_path, [*ROWS, *bad, *same], tiny_tokenizer_dir, max_rejected=0.1)
    expected = {(text["text"], LABELS.index(text["label"])) for text in [*ROWS, *same]}
    found = [row for name in (TRAIN, VALIDATION) for row in pq.read_table(tmp_path / "dataset" / name).to_pylist()]
    assert len(found) == len(expected) == len(ROWS) + 2
    said = {text: llama_tokenizer(text)["input_ids"] for text, _ in expected}
    assert sorted((row["input_ids"], row["labels"][-1]) for row in found) == sorted((said[t], n) for t, n in expected)
    assert all(set(row["labels"][:-1]) <= {IGNORED} for row in found)
    assert sum(stats.train.classes) == stats.train.token_rows == stats.train.trained_tokens
    together = [sum(counts) for counts in zip(stats.train.classes, stats.validation.classes, strict=True)]
    assert together == [sum(number == i for _, number in expected) for i in range(3)]
    assert stats.train.rejected + stats.validation.rejected == len(bad)
    assert "column 'label' holds 'lukewarm', which is not in classification.labels" in stats.reasons
    samples = load_samples(tmp_path / "dataset")
    assert samples
    assert all(sample["reference"] in LABELS and said[sample["question"]] == sample["input_ids"] for sample in samples)
    assert "rows of class warm" in prepare.summary(stats)
    page = (tmp_path / "dataset" / "report.html").read_text()
    assert "label neutral" in page
    assert "<mark>" not in page


def test_too_many_bad_labels_stop_the_preparation(tmp_path, tiny_tokenizer_dir):
    rows = [*ROWS, *({"text": f"row {i}", "label": "tepid"} for i in range(40))]
    with pytest.raises(DataError, match=r"40 of 280 rows(.|\n)*'tepid', which is not in classification.labels"):
        prepared(tmp_path, rows, tiny_tokenizer_dir, max_rejected=0.1)


def test_a_cut_text_keeps_its_class_and_what_the_tokenizer_puts_behind_it(
    tmp_path, tiny_tokenizer_dir, llama_tokenizer
):
    """As `tokenizer(text, truncation=True)` does: the class is read at the last token, whichever that is."""
    from tokenizers import processors

    _, stats = prepared(tmp_path, ROWS, tiny_tokenizer_dir, max_length=8)
    rows = pq.read_table(tmp_path / "dataset" / TRAIN).to_pylist()
    assert stats.train.truncated > 0
    assert all(len(row["labels"]) <= 8 and row["labels"][-1] in range(3) for row in rows)

    closing = load_tokenizer(tiny_tokenizer_dir)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    from thriftune.data.examples import MarkedText
    from thriftune.data.labelled import truncated

    tokenization, text = Tokenization(closing), "the sky is red on day 3, and on day 4 as well"
    (row,) = tokenization.tokenize([MarkedText(text, (), label=2)])
    assert row.input_ids == closing(text)["input_ids"]
    cut = truncated(row, 8, tokenization.closing)
    assert cut.input_ids == closing(text, truncation=True, max_length=8)["input_ids"]
    assert cut.labels == [IGNORED] * 7 + [2]


def test_the_preflight_names_classes_that_no_row_or_few_rows_have(tmp_path, tiny_tokenizer_dir):
    rows = [row for row in ROWS if row["label"] == "warm"] + [ROWS[4]] * 1
    _, stats = prepared(tmp_path, rows, tiny_tokenizer_dir, deduplicate=False, leakage_check=False)
    counted = replace(stats.train, classes=(70, 2, 0))
    found = list(data_checks._classes(tried(replace(stats, train=counted)), sample_of_all()))
    assert [(each.code, each.value) for each in found] == [
        ("class-without-rows", "neutral"), ("classes-unbalanced", "cold (2)"),
    ]  # fmt: skip


def tried(stats: DataStats) -> Tried:
    return Tried(stats, None, (), 0, 0, 0)  # type: ignore[arg-type]


def sample_of_all():
    from thriftune.preflight.sampling import Sample

    return type("All", (Sample,), {"is_whole": True})(sources=())  # type: ignore[call-arg]


# ---- the head


def test_a_new_head_is_the_same_in_every_type_and_for_every_load(tiny_model_dir):
    """Ranks and strategies load the base in different types; they must begin with the same numbers."""
    import torch

    heads = [
        load_causal_lm(tiny_model_dir, classes=Classes(LABELS, seed), dtype=dtype).score.weight.float()
        for seed, dtype in ((0, "auto"), (0, torch.float16), (0, torch.bfloat16), (1, "auto"))
    ]
    assert heads[0].shape == (3, 64)
    assert heads[0].std().item() == pytest.approx(0.02, rel=0.3)
    assert all(torch.equal(heads[0], other) for other in heads[1:3])
    assert not torch.equal(heads[0], heads[3])


def test_only_the_head_may_be_missing_and_nothing_is_said_of_the_old_one(tiny_model_dir, tmp_path, caplog):
    from safetensors.torch import load_file, save_file

    load_causal_lm(tiny_model_dir, classes=Classes(LABELS))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for file in tiny_model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match=r"1 of \d+ weights are missing, such as model.layers.1.mlp.up_proj"):
        load_causal_lm(tmp_path, classes=Classes(LABELS))


def test_the_plan_counts_classes_in_place_of_the_vocabulary(tiny_model_dir):
    """Logits of a validation are the largest thing in it for a language model, and nothing for a classifier."""
    config = RunConfig.model_validate(run_of("lora"))
    shape = architecture.of(ModelConfig(source=str(tiny_model_dir)), labels=LABELS)
    language = architecture.of(ModelConfig(source=str(tiny_model_dir)))
    assert (shape.head_name, shape.outputs, set(shape.new_head)) == ("score.weight", 3, {"score.weight"})
    assert language.parameters - shape.parameters == 64 * (400 - 3)
    assert held_by_rows(config, shape, "fp32") == 12 * config.data.max_length * 3
    plan = planned(config, model=tiny_model_dir)
    assert plan.trained_parameters == METHODS["lora"].trained_parameters(config, language) + 3 * 64


def test_accuracy_and_macro_f1_are_those_of_the_books():
    """By hand: of the classes 0, 0, 1, 2 named 0, 1, 1, 1, F1 is 2/3, 1/2 and 0."""
    losses = RowLosses((0.1,) * 4, (1,) * 4, guesses=(0, 1, 1, 1), classes=(0, 0, 1, 2))
    assert losses.accuracy == 0.5
    assert losses.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert EvalReport.of(losses, [], []).quality == "accuracy 50.0%, macro-F1 0.389"
    assert RowLosses((1.0,), (2,)).accuracy is None
    assert EvalReport.of(RowLosses((1.0,), (2,)), [], []).quality == "perplexity 1.65"


# ---- trainings


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_dir):
    """Every job, run once: those of one process together, the others in two ranks each."""
    folder = tmp_path_factory.mktemp("classification")
    data, _ = prepared(folder, ROWS, tiny_model_dir)
    jobs = {}
    for number, (name, (method, strategy, count, micro_batch)) in enumerate(JOBS.items()):
        content = run_of(
            method,
            data=data.data.model_dump(mode="json", exclude_unset=True),
            hardware={"devices_per_node": count},
            training={
                "global_batch": 12, "micro_batch": micro_batch, "max_steps": STEPS,
                "precision": "fp32", "log_every": 1, "learning_rate": RATES[method],
                "gradient_checkpointing": False,
                **({"save_dtype": "fp32"} if METHODS[method].facts.trains_weights else {}),
            },
            evaluation={"every_steps": STEPS, "max_new_tokens": 4},
        )  # fmt: skip
        content |= {"strategy": strategy, "model": {"source": str(tiny_model_dir)}}
        content |= {"partial": {"train": ["head"]}} if method == "partial" else {}
        content |= {"lora": {"rank": 8, "alpha": 16, "dropout": 0.0}} if "lora" in method else {}
        jobs[name] = {
            "config": content, "model": str(tiny_model_dir), "dataset": str(folder / "dataset"),
            "output": str(folder / f"run{number}"),
        }  # fmt: skip
    alone = [job for name, job in jobs.items() if JOBS[name][2] == 1]
    (folder / "alone.json").write_text(json.dumps(alone))
    done = subprocess.run([sys.executable, WORKER, folder / "alone.json"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, job in jobs.items():
        if JOBS[name][2] > 1:
            Path(f"{job['output']}.job").write_text(json.dumps([job]))
            ranks.run(JOBS[name][2], WORKER, Path(f"{job['output']}.job"))
    results = {name: json.loads(Path(f"{job['output']}.json").read_text()) for name, job in jobs.items()}
    return jobs, results


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_classifier_learns_the_classes(trained, name):
    """Four of ten rows have the most common class."""
    result = trained[1][name]
    assert result["before"]["loss"] == pytest.approx(math.log(3), abs=0.1)
    assert result["after"]["loss"] < result["before"]["loss"] / 2
    assert result["after"]["accuracy"] > 0.8
    assert result["after"]["perplexity"] is None
    assert result["validations"][-1]["macro_f1"] == result["after"]["macro_f1"] > result["before"]["macro_f1"]
    assert all(answer.split(" (")[0] in LABELS for answer in result["after"]["answers"])


@pytest.mark.parametrize(
    ("name", "like"),
    [("full in passes of two", "full"), ("full over two ranks", "full")],
)
def test_the_loss_is_a_mean_over_the_rows_of_a_step_however_it_is_cut(trained, name, like):
    """Neither padding nor the number of passes and ranks may change what a row weighs."""
    one, other = (trained[1][which]["losses"] for which in (like, name))
    assert len(one) == STEPS
    assert one == pytest.approx(other, abs=1e-4)


def plain_loss(model, dataset):
    """Loss and accuracy with nothing of ours, row by row without padding."""
    import torch

    rows = pq.read_table(Path(dataset) / VALIDATION).to_pylist()
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits.float() for row in rows])
    classes = torch.tensor([row["labels"][-1] for row in rows])
    right = (logits.argmax(1) == classes).double().mean()
    return float(torch.nn.functional.cross_entropy(logits, classes)), float(right)


@pytest.mark.parametrize("name", ["full", "full over two ranks", "head alone"])
def test_a_saved_model_is_an_ordinary_classifier(trained, name):
    from transformers import AutoModelForSequenceClassification, pipeline

    jobs, results = trained
    model = AutoModelForSequenceClassification.from_pretrained(jobs[name]["output"])
    expected = (results[name]["after"]["loss"], results[name]["after"]["accuracy"])
    assert plain_loss(model, jobs[name]["dataset"]) == pytest.approx(expected, abs=1e-5)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert not (Path(jobs[name]["output"]) / "generation_config.json").exists()
    asked = results[name]["after"]["prompts"][:2]
    said = pipeline("text-classification", model=jobs[name]["output"])(asked)
    answers = [answer.split(" (")[0] for answer in results[name]["after"]["answers"][:2]]
    assert [each["label"] for each in said] == answers


def test_the_head_alone_leaves_every_other_weight_as_it_was(trained, tiny_model_dir):
    import torch
    from safetensors.torch import load_file

    base = load_file(tiny_model_dir / "model.safetensors")
    tuned = load_file(Path(trained[0]["head alone"]["output"]) / "model.safetensors")
    assert tuned.keys() ^ base.keys() == {"score.weight", "lm_head.weight"}
    assert all(torch.equal(base[name], tuned[name]) for name in tuned.keys() & base.keys())
    drawn = load_causal_lm(tiny_model_dir, classes=Classes(LABELS, 0)).score.weight
    assert not torch.equal(tuned["score.weight"], drawn)


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_an_adapter_holds_the_head_and_reloads_with_plain_peft(trained, tiny_model_dir, name):
    """The base that it is put on has a head of other random numbers, which must not matter."""
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForSequenceClassification

    jobs, results = trained
    output = Path(jobs[name]["output"])
    with safe_open(output / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == 2 * 14 + 1
    assert "base_model.model.score.weight" in names
    held = configuration(torch.float32, FourBit()) if name == "qlora" else None
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=3, pad_token_id=3, quantization_config=held
    )
    assert type(base.score) is torch.nn.Linear
    expected = (results[name]["after"]["loss"], results[name]["after"]["accuracy"])
    assert plain_loss(PeftModel.from_pretrained(base, output), jobs[name]["dataset"]) == pytest.approx(
        expected, abs=max(1e-5, EXACT_IN_FOUR_BITS) if held else 1e-5
    )


def test_a_merged_adapter_and_one_measured_again_have_the_same_loss(trained, tiny_model_dir, tmp_path):
    from transformers import AutoModelForSequenceClassification

    jobs, results = trained
    job, after = jobs["lora"], results["lora"]["after"]
    config = RunConfig.model_validate(job["config"])
    tokenizer, rows = load_tokenizer(tiny_model_dir), held_out_rows(Path(job["dataset"]), 64)
    saved = merging.merge(
        tiny_model_dir,
        Path(job["output"]),
        tmp_path / "merged",
        held_out=HeldOut(rows, tokenizer, 8, objective_of(LABELS)),
        classes=Classes.of(config),
    )
    assert saved is not None
    assert (saved.base_loss, saved.saved_loss) == pytest.approx(
        (results["lora"]["before"]["loss"], after["loss"]), abs=1e-5
    )
    assert (saved.next_tokens.tokens, saved.next_tokens.agreement) == (len(rows), 1.0), "its classes are compared"
    assert 0 <= saved.next_tokens.kl < 1e-4
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert plain_loss(merged, job["dataset"])[0] == pytest.approx(after["loss"], abs=1e-5)
    assert merged.config.id2label == dict(enumerate(LABELS))
    placement = Placement(detect_device(), "fp32")
    again = evaluation.evaluate(tiny_model_dir, Path(job["dataset"]), config, placement, Path(job["output"]))
    assert (again.loss, again.accuracy) == pytest.approx((after["loss"], after["accuracy"]), abs=1e-5)
    assert again.answers == after["answers"]


def test_a_classifier_is_continued_with_its_head_but_not_with_other_classes(trained):
    import torch
    from transformers import AutoModelForSequenceClassification

    output = Path(trained[0]["full"]["output"])
    shape = architecture.of(ModelConfig(source=str(output)), labels=LABELS)
    assert shape.new_head == frozenset()
    plain = AutoModelForSequenceClassification.from_pretrained(output)
    assert torch.equal(load_causal_lm(output, classes=Classes(LABELS, 5)).score.weight, plain.score.weight)
    with pytest.raises(ModelSourceError, match="a classifier already, of the classes warm, cold, neutral"):
        architecture.of(ModelConfig(source=str(output)), labels=("cold", "warm", "neutral"))


def test_an_adapter_of_the_other_task_is_not_continued(trained, tiny_model_dir, random_adapter):
    """peft would leave the new head frozen, without a word."""
    config = RunConfig.model_validate(trained[0]["lora"]["config"])
    shape = architecture.of(ModelConfig(source=str(tiny_model_dir)), labels=LABELS)
    METHODS["lora"].check(config, shape, Path(trained[0]["lora"]["output"]))
    with pytest.raises(AdapterError, match="trained for task CAUSAL_LM, not SEQ_CLS"):
        METHODS["lora"].check(config, shape, random_adapter(1, rank=8))


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_classifier_is_not_asked_for_a_text(trained, tiny_model_dir, name):
    output = Path(trained[0][name]["output"])
    model, adapters = (output, {}) if name == "full" else (tiny_model_dir, {"mine": output})
    with pytest.raises(UserError, match="is a classifier.*which writes no text"):
        generation.generate(
            model, ["Why?"], adapters=adapters, placement=Placement(detect_device(), "fp32"), sampling=Sampling(4),
            batch=1,
        )  # fmt: skip


def test_what_says_that_a_model_is_a_classifier():
    content = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "10": "c", "2": "b"}}
    assert classifier.labels_in(content) == ("a", "b", "c")
    assert classifier.labels_in({"architectures": ["LlamaForCausalLM"], "id2label": {"0": "a"}}) == ()
    assert not classifier.is_classifier({})
