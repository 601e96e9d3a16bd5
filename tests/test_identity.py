"""What decides a training, and what is said of a checkpoint of another one."""

import json
from dataclasses import replace
from functools import cache

import pytest
from conftest import run_dict
from planning import planned

from thriftune.checkpoints import identity
from thriftune.config import LoraConfig, RunConfig, TrainingConfig
from thriftune.methods import METHODS
from thriftune.strategies import STRATEGIES
from thriftune.strategies.zero.strategy import settings_of

STEP = 9
# Decide where and how fast a run trains, what it logs, which of its weights are the result and how that is stored, and
# no number of a step of the training.
OF_NO_MATTER = {
    "micro_batch", "gradient_checkpointing", "save_dtype", "log_every", "on_divergence", "stall_timeout", "report_to",
    "merge", "keep", "patience",
}  # fmt: skip
# In other words: the steps that they make together with the rows.
AS_STEPS = {"epochs", "max_steps"}


@cache
def plan_of(method):
    """A plan; what these tests need of it is put in."""
    run = RunConfig.model_validate(run_dict(method))
    return planned(run, {"zero_optimization": {"stage": 2}} if method == "full" else None)


@pytest.fixture
def own(run_config):
    """The identity of a run on ten rows, by default of ten steps."""

    def make(method="qlora", precision="fp32", rows=10, **sections):
        training = {"max_steps": 10, "global_batch": 4, **sections.pop("training", {})}
        config = run_config(method, training=training, **sections)
        plan = replace(plan_of(method), precision=precision, global_batch=config.training.global_batch)
        return identity.of(config, plan, model="commit", dataset="rows", rows=rows)

    return make


def compared(own, saved, step=STEP):
    """As a checkpoint's manifest gives it back."""
    content = json.loads(json.dumps(identity.in_manifest(saved)))
    return identity.compare(own, content, step, place="there", or_else="begin anew")


def test_every_key_of_training_and_lora_is_part_of_it_or_of_no_matter(own):
    """Another learning rate, schedule, alpha or rank went on in silence, or ended in an error of torch's."""
    names = {name.partition(".")[2] for name in {**own(), **own("full")}}
    fields = {*TrainingConfig.model_fields, *LoraConfig.model_fields}
    assert fields - OF_NO_MATTER - names <= AS_STEPS
    assert not names & OF_NO_MATTER


@pytest.mark.parametrize(
    ("field", "section", "value", "theirs"),
    [
        ("training.learning_rate", "training", 1e-4, "2e-05"),
        ("training.scheduler", "training", "linear", "cosine"),
        ("training.warmup_share", "training", 0.5, "0.03"),
        ("training.weight_decay", "training", 0.1, "0.0"),
        ("training.max_grad_norm", "training", 0.5, "1.0"),
        ("training.optimizer", "training", "adamw_8bit", "adamw"),
        ("training.global_batch", "training", 8, "4"),
        ("training.group_by_length", "training", True, "false"),
        ("lora.rank", "lora", 8, "64"),
        ("lora.alpha", "lora", 8, "16"),
        ("lora.dropout", "lora", 0.1, "0.05"),
        ("lora.double_quantization", "lora", False, "true"),
        ("lora.target_modules", "lora", ["q_proj"], "null"),
        ("lora.resume_from", "lora", "adapter", "null"),
    ],
)
def test_what_differs_is_refused_by_field_with_both_values(own, field, section, value, theirs):
    key = field.partition(".")[2]
    (problem,) = compared(own(**{section: {key: value}}), own()).problems
    assert problem.field == field
    assert problem.message == f"the checkpoint of step {STEP} in there was trained with {theirs}."
    assert problem.remedy == f"Use {theirs}, or begin anew."


def test_everything_that_differs_is_said_at_once(own):
    problems = compared(own(training={"learning_rate": 1e-4}, seed=3, precision="bf16"), own()).problems
    assert {problem.field for problem in problems} == {"training.learning_rate", "training.precision", "seed"}


def test_another_method_is_all_that_is_said(own):
    (problem,) = compared(own("full"), own()).problems
    assert (problem.field, problem.value) == ("method", "full")


def test_a_base_in_sixteen_bits_is_another_method_and_says_nothing_of_its_constants(own):
    (problem,) = compared(own("lora"), own()).problems
    assert (problem.field, problem.value) == ("method", "lora")
    assert "lora.double_quantization" in own("qlora")
    assert "lora.double_quantization" not in own("lora")
    assert "lora.rank" in own("lora")


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_without_zero_a_training_has_no_stage(method):
    """What one device or layers over several save is the same whatever it is cut over."""
    assert "zero.config" in STRATEGIES["zero"].identity(settings_of("", {"zero_optimization": {"stage": 2}}))
    config = RunConfig.model_validate(run_dict(method, strategy="single"))
    assert "zero.config" not in identity.of(config, planned(config), model="", dataset="", rows=10)


def test_zero_and_one_process_cannot_resume_from_each_other():
    """The planner may choose one or the other, by the hardware; neither reads the files of the other."""
    config = RunConfig.model_validate(run_dict("full", training={"max_steps": STEP}))
    plan = planned(config)
    zero = replace(plan, strategy="zero", settings=settings_of("", {"zero_optimization": {"stage": 2}}))
    one, other = (
        identity.of(config, now, model="", dataset="", rows=10)
        for now in (replace(plan, strategy="single", settings=""), zero)
    )
    for own, saved in ((one, other), (other, one)):
        assert {problem.field for problem in compared(own, saved).problems} == {"strategy"}
    layers = identity.of(config, replace(plan, strategy="layers", settings=""), model="", dataset="", rows=10)
    assert compared(one, layers).problems == ()


def test_another_stage_of_zero_another_base_model_and_other_rows(own):
    saved = own("full")
    other = {**saved, "zero.config": 3, "model.source": "other", "data": "other"}
    told = {problem.field: problem for problem in compared(other, saved).problems}
    assert "ZeRO stage 2; stage 3, which this run uses" in told["zero.config"].message
    assert "another base model" in told["model.source"].message
    assert "other rows" in told["data"].message


def test_the_same_training_is_the_same_on_other_ranks_and_with_another_micro_batch(own):
    changed = own(training={"micro_batch": 1, "log_every": 1, "on_divergence": "rollback"})
    assert compared(changed, own()) == identity.Comparison((), ())
    assert (
        compared(
            own(lora={"target_modules": ["v_proj", "q_proj"]}), own(lora={"target_modules": ["q_proj", "v_proj"]})
        ).problems
        == ()
    )


def test_epochs_and_max_steps_that_make_as_many_steps_are_the_same(own):
    assert compared(own(training={"max_steps": None, "epochs": 10 / 3}), own()) == identity.Comparison((), ())
    assert "training.max_steps" not in own(rows=None, training={"max_steps": None})


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_other_steps_are_another_training_where_the_learning_rate_depends_on_them(own, scheduler):
    saved = own(training={"scheduler": scheduler})
    (problem,) = compared(own(training={"scheduler": scheduler, "max_steps": 20}), saved).problems
    assert (problem.field, problem.value) == ("training.max_steps", "20")
    assert "a run of 10 steps, on which its learning rate depends" in problem.message
    assert problem.remedy.startswith("Train 10; to train longer, start a run from the finished model")


def test_other_steps_hold_where_the_learning_rate_is_constant_by_then(own):
    constant = {"scheduler": "constant", "warmup_share": 0.1}
    saved = own(training=constant)
    longer = compared(own(training={**constant, "max_steps": 90}), saved)
    assert longer.problems == ()
    assert longer.remarks == (
        "training.max_steps: the run's 90 steps are used; the checkpoint of step 9 in there is of a run of 10.",
    )
    assert compared(own(training={**constant, "max_steps": 100}), saved).problems, "it still rises at step 9 of 100"


def test_steps_that_are_done_already_cannot_be_all(own):
    (problem,) = compared(own(training={"scheduler": "constant", "max_steps": 8}), own()).problems[-1:]
    assert "has done more steps already" in problem.message
    same = own(training={"max_steps": 9})
    assert compared(same, same) == identity.Comparison((), ()), "nothing is left to train, and that is no error"


def test_what_an_older_version_noted_is_compared_and_the_rest_is_a_remark(own):
    content = {"method": "qlora", "base model": "commit", "dataset": "other", "global batch": 4, "seed": 0, "guard": {}}
    found = identity.compare(own(), content, STEP, place="there", or_else="begin anew")
    assert [problem.field for problem in found.problems] == ["data"]
    (remark,) = found.remarks
    assert "written by an older version, without training.precision, training.learning_rate" in remark
    assert "seed" not in remark


@pytest.mark.parametrize(("init", "default"), [("default", 0.05), ("pissa", 0.0), ("eva", 0.05)])
def test_the_dropout_that_is_left_out_is_the_one_that_trains(run_config, init, default):
    """A training with dropout was served to a run whose first values have none."""
    left_out, given = (
        METHODS["lora"].identity(run_config("lora", lora={"init": init, **more})) for more in ({}, {"dropout": default})
    )
    assert left_out == given
    assert left_out["lora.dropout"] == default
