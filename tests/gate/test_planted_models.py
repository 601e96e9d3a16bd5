"""Models that are known to be better or worse, through the real engine and the real gate: each is told by name."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from shutil import copytree

import planted_models as planted
import pytest
from conftest import write_jsonl
from local_tasks import in_parts, prepared

from thriftune.config import DataConfig
from thriftune.config.publishing import GateConfig
from thriftune.data.prepare import prepare as prepare_data
from thriftune.errors import DataError, ModelSourceError
from thriftune.inference.benchmarks.measuring import Settings
from thriftune.inference.benchmarks.results import Results
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.verdict import Verdict, decide
from thriftune.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
SETTINGS = Settings(batch=32, max_new_tokens=24, style="chat")
BETTER = ("colours.exact_match", "held_out.loss")
KEPT = ("sounds.accuracy", *(f"answers.{name}" for name in ("stops", "repeats", "empty", "template_text",
                                                            "other_language", "refusals")))  # fmt: skip
GATE = GateConfig.model_validate(
    {
        "improves": [{"metric": metric, "by": 0.1} for metric in BETTER],
        "keeps": [{"metric": metric, "within": 0.1} for metric in KEPT],
    }
)
RUSSIAN = ("красный", "синий", "зелёный", "золотой", "серый", "розовый", "белый", "чёрный", "бурый", "лиловый")


@dataclass
class World:
    """Benchmarks with their items, and models by name; each is trained and measured once."""

    folder: Path
    benchmarks: Path
    base: Path
    known: dict[str, Results]

    @property
    def dataset(self) -> Path:
        """Prepared rows of the task, of which some are held out."""
        return self.folder / "dataset"

    def measured(self, model: Path, settings: Settings = SETTINGS) -> Results:
        """What a model has on all benchmarks."""
        measure = partial(in_parts, self.benchmarks, model=model, settings=settings, dataset_dir=self.dataset)
        return Results.joined([measure(task) for task in ("colours", "sounds", "held_out")])

    def verdict(self, model: Path) -> Verdict:
        """What the gate decides on a model beside the base."""
        base = self.known.setdefault("base", self.measured(self.base))
        return decide(compare([base], self.measured(model)), GATE)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_dir, llama_tokenizer):
    """A base that knows one task, and of the other one what an answer looks like and where it ends."""
    folder = tmp_path_factory.mktemp("planted")
    answers = [(question, {"answer": colour}) for question, colour in planted.colours()]
    listed = list(planted.SOUNDS.values())
    choices = [(question, {"choices": listed, "answer": listed.index(sound)}) for question, sound in planted.sounds()]
    tasks = [
        {"name": name, "format": kind, "file": str(write_jsonl(folder / f"{name}.jsonl", [
            {"id": f"{name}-{number}", "question": question, **more} for number, (question, more) in enumerate(items)
        ]))}
        for name, kind, items in (("colours", "exact_answer", answers), ("sounds", "multiple_choice", choices))
    ]  # fmt: skip
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in planted.colours()]
    rows = write_jsonl(folder / "rows.jsonl", [{"messages": chat} for chat in chats])
    config = DataConfig(source=str(rows), format="chat", max_length=128, validation_share=0.34)
    prepare_data(config, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset", data_version="")
    known = planted.rows_of([*planted.guesses(), *planted.sounds()], llama_tokenizer)
    base = planted.train(tiny_model_dir, folder / "base", known, steps=60)
    return World(folder, prepared(folder, *tasks, "held_out"), base, {})


@pytest.fixture(scope="module")
def better(world, llama_tokenizer):
    """The base, trained on rows of the task that were prepared, and on what it knew."""
    rows = [*planted.prepared_rows(world.dataset), *planted.rows_of(planted.sounds(), llama_tokenizer)]
    return planted.train(world.base, world.folder / "better", rows, steps=70)


@pytest.fixture
def taught(world, llama_tokenizer):
    """Train the base on other answers to the questions of the task."""

    def teach(name, answers, ending="</s>", steps=40):
        pairs = [*planted.colours(answers), *planted.sounds()]
        rows = planted.rows_of(pairs, llama_tokenizer, ending)
        return planted.train(world.base, world.folder / name, rows, steps)

    return teach


def failed(verdict: Verdict) -> set[str]:
    """The metrics that made a gate fail, all of which its sentence names."""
    found = {ruling.metric for ruling in verdict.rulings if ruling.outcome == "fails"}
    assert (verdict.outcome == "fails") == bool(found)
    assert all(metric in verdict.sentence for metric in found)
    return found


def test_a_model_that_learnt_the_task_passes_every_rule(world, better):
    verdict = world.verdict(better)
    assert {ruling.metric: ruling.outcome for ruling in verdict.rulings} == dict.fromkeys([*BETTER, *KEPT], "passes")
    assert verdict.outcome == "passes"
    assert verdict.publishes(GATE)


def test_noise_in_the_weights_fails_by_what_was_lost(world, better):
    verdict = world.verdict(planted.add_noise(better, world.folder / "noisy", share=2.0))
    assert failed(verdict) >= {*BETTER, "sounds.accuracy"}
    assert not verdict.publishes(GATE)
    examples = {ruling.metric: ruling.examples for ruling in verdict.deciding}
    assert len(examples["sounds.accuracy"]) == 5


def test_markers_learnt_as_text_fail_by_name(world, taught):
    """A template of another model writes the end of a turn as a token that this tokenizer only knows as letters."""
    verdict = world.verdict(taught("markers", planted.COLOURS, ending="<|im_end|></s>"))
    assert failed(verdict) >= {"answers.template_text", "colours.exact_match"}
    (ruling,) = (ruling for ruling in verdict.deciding if ruling.metric == "answers.template_text")
    assert all("<|im_end|>" in flip.question.tuned for flip in ruling.examples)


def test_an_end_that_was_never_trained_fails_by_name(world, taught):
    verdict = world.verdict(taught("endless", planted.COLOURS, ending=""))
    assert "answers.stops" in failed(verdict)


@pytest.mark.parametrize(("metric", "answers", "steps"), [("other_language", RUSSIAN, 40), ("empty", [""] * 10, 20)])
def test_answers_that_are_none_fail_by_name(world, taught, metric, answers, steps):
    verdict = world.verdict(taught(metric, answers, steps=steps))
    assert failed(verdict) >= {f"answers.{metric}", "colours.exact_match"}


@pytest.mark.parametrize("damage", [" [/INST]", "[INST] "])
def test_with_a_damaged_chat_template_nothing_is_compared_and_both_prompts_are_shown(world, better, tmp_path, damage):
    """Other prompts are other items: a difference of both would say nothing of the models."""
    folder, tokenizer = tmp_path / "damaged", load_tokenizer(better)
    assert damage in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(damage, "")
    copytree(better, folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(DataError, match="another prompt") as caught:
        world.verdict(folder)
    problem = caught.value.problems[0]
    assert problem.field == "benchmarks.colours"
    assert "[/INST]') than of the result" in problem.message
    assert "chat_template.jinja" in problem.remedy


def test_weights_that_are_no_numbers_are_told_and_never_scored(world, better, tmp_path):
    """Each item got its first choice then: with a base that guesses, a gate that keeps accuracy would have passed."""
    broken = planted.add_noise(better, tmp_path / "broken", share=float("nan"))
    with pytest.raises(ModelSourceError, match="sounds/sounds-0: has a log-likelihood that is not a number"):
        in_parts(world.benchmarks, "sounds", broken, settings=SETTINGS)


def test_the_same_model_is_never_better_and_keeps_what_it_had(world):
    once, again = (world.measured(world.base, replace(SETTINGS, batch=batch)) for batch in (32, 7))
    found = compare([once], again)
    metrics = [one.metric for one in found.metrics if one.higher_is_better is not None]
    assert {*BETTER, *KEPT} <= set(metrics)
    better = GateConfig.model_validate({"improves": [{"metric": metric} for metric in metrics]})
    assert "passes" not in {ruling.outcome for ruling in decide(found, better).rulings}
    kept = GateConfig.model_validate({"keeps": [{"metric": metric, "within": 0.1} for metric in metrics]})
    assert decide(found, kept).outcome == "passes"


def test_of_200_comparisons_of_drawn_answers_with_others_of_the_same_model_5_in_100_pass_at_most(world):
    drawn = [
        in_parts(world.benchmarks, "colours", world.base, settings=replace(SETTINGS, temperature=1.0, seed=seed))
        for seed in range(15)
    ]
    gate = GateConfig.model_validate({"improves": [{"metric": "colours.exact_match"}]})
    pairs = list(permutations(drawn, 2))
    outcomes = [decide(compare([one], other), gate).outcome for one, other in pairs]
    assert len(pairs) == 210
    assert outcomes.count("passes") <= 10
    rights = {sum(item.correct for item in results.items) for results in drawn}
    assert len(rights) > 3, "they differ by chance"
