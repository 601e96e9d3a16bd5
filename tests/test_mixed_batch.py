"""Which adapters may answer in one batch: what is said of them is what peft does."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from thriftune import artifacts
from thriftune.errors import AdapterError
from thriftune.hardware import DEVICES
from thriftune.inference.asking import BASE
from thriftune.inference.generation import generate
from thriftune.inference.prompts import Prompt
from thriftune.models import mixed_batch
from thriftune.models.adapter_weights import config_of
from thriftune.models.answering import Sampling, complete
from thriftune.models.loading import Placement, attach_adapters
from thriftune.models.mixed_batch import NO_ADAPTER, batchable, kind_of, loads_of, unbatchable_on
from thriftune.models.quantization import FourBit

CPU = Placement(DEVICES["CPU"], "fp32")
PROMPTS = ["What is the capital of France?", "hi", "Two and two"]
LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
EXPERTS = {"target_modules": [], "target_parameters": ["mlp.gate_proj.weight"]}


def lora(**changes: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**(LORA | changes))


def other(kind: str) -> Any:
    from peft import IA3Config, PrefixTuningConfig

    if kind == "prefix":
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"])


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Callable[[str, Any], Path]:
    """Make an adapter of the tiny model from peft's configuration, with values that change what it says."""

    def make(name: str, config: Any) -> Path:
        import torch
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32"), config)
        generator = torch.Generator().manual_seed(sum(name.encode()))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(tmp_path / name)
        content = {"config": {"name": "random"}, "plan": {}, "dataset_fingerprint": "f", "training": {}}
        artifacts.write_manifest(tmp_path / name, "adapter", content)
        return tmp_path / name

    return make


GOOD = {
    "plain": {},
    "another rank": {"r": 8, "lora_alpha": 4, "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
    "rank-stabilized": {"use_rslora": True},
    "embeddings": {"target_modules": ["embed_tokens", "down_proj", "lm_head"]},
    "biases of its own": {"lora_bias": True},
}
BAD = {
    "DoRA": ({"use_dora": True}, "DoRA"),
    "a whole module": ({"modules_to_save": ["lm_head"]}, "modules that trained as a whole"),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [5, 6, 7, 8, 300]}}, "tokens that trained"),
    "biases": ({"bias": "lora_only"}, "biases are those of the base"),
    "parameters": (EXPERTS, "adapters on parameters"),
}


def by_name(answers: list[Any]) -> dict[str, list[str]]:
    return {name: [one.answer for one in answers if one.adapter == name] for name in {one.adapter for one in answers}}


def asked(model_dir: Path, adapters: dict[str, Path], prompts: Any = PROMPTS, batch: int = 4) -> Any:
    return generate(model_dir, prompts, adapters=adapters, placement=CPU, sampling=Sampling(8), batch=batch)


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_what_is_batched_answers_as_it_does_alone(tiny_model_dir, adapter, changes):
    one, two = adapter("one", lora(**changes)), adapter("two", lora())
    assert not batchable(config_of(one, "adapters"))
    both = by_name(asked(tiny_model_dir, {"one": one, "two": two}))
    assert both["one"] == by_name(asked(tiny_model_dir, {"one": one}))["one"] != both["two"]
    assert both["two"] == by_name(asked(tiny_model_dir, {"two": two}))["two"]


def test_adapters_share_a_batch_on_a_base_in_4_bits(tiny_model_dir, adapter):
    """peft has other layers there. Rows of other adapters change nothing: each adapter's logits are summed alone."""
    import torch

    from thriftune.models.loading import load_model

    named = {"one": adapter("one", lora()), "two": adapter("two", lora())}
    model = attach_adapters(load_model(tiny_model_dir, Placement(CPU.device, "fp32", FourBit())), named).eval()
    ids = torch.arange(10, 20).repeat(3, 1)
    with torch.no_grad():
        mixed = model(ids, adapter_names=["one", "two", NO_ADAPTER]).logits
        for row, name in enumerate(named):
            model.set_adapter(name)
            assert torch.allclose(mixed[row], model(ids).logits[row], atol=1e-5)
        assert not torch.allclose(mixed[0], mixed[1], atol=1e-2)


@pytest.mark.parametrize(("changes", "reason"), BAD.values(), ids=BAD)
def test_what_is_not_batched_answers_as_it_does_alone(tiny_model_dir, adapter, changes, reason):
    one, two = adapter("one", lora(**changes)), adapter("two", lora())
    assert reason in batchable(config_of(one, "adapters"))
    both = by_name(asked(tiny_model_dir, {"one": one, "two": two}))
    assert both["one"] == by_name(asked(tiny_model_dir, {"one": one}))["one"] != both["two"]
    assert both["two"] == by_name(asked(tiny_model_dir, {"two": two}))["two"]


@pytest.mark.parametrize("order", list(permutations(["one", "two", "whole"])), ids="-".join)
def test_a_batch_beside_a_whole_module_answers_as_each_alone(tiny_model_dir, adapter, order):
    """peft looked there for a module of each adapter of the batch, or took that of the active one for every row."""
    made = {
        "one": adapter("one", lora()),
        "two": adapter("two", lora(r=8)),
        "whole": adapter("whole", lora(modules_to_save=["lm_head"])),
    }
    prompts = [Prompt(text, name) for text in PROMPTS for name in (*order, BASE)]
    found = by_name(asked(tiny_model_dir, {name: made[name] for name in order}, prompts, batch=5))
    for name in order:
        assert found[name] == by_name(asked(tiny_model_dir, {name: made[name]}))[name]
    assert found[BASE] == by_name(asked(tiny_model_dir, {}))[BASE]
    assert len({tuple(answers) for answers in found.values()}) == len(found)


@pytest.mark.parametrize("active", ["one", "whole"])
def test_rows_that_share_a_batch_do_not_depend_on_the_active_adapter(tiny_model_dir, llama_tokenizer, adapter, active):
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    made = {"one": adapter("one", lora()), "two": adapter("two", lora())}
    named = {**made, "whole": adapter("whole", lora(modules_to_save=["lm_head"]))}
    model = attach_adapters(base, named).eval()
    ids = torch.tensor([llama_tokenizer("The quick brown fox")["input_ids"]] * 3)
    model.set_adapter(active)
    with torch.no_grad():
        with mixed_batch.sharing(mixed_batch.whole_modules(model)):
            mixed = model(ids, adapter_names=[*made, NO_ADAPTER]).logits
        assert model.active_adapter == active
        for row, name in enumerate(made):
            model.set_adapter(name)
            assert torch.equal(mixed[row], model(ids).logits[row])
        with model.disable_adapter():
            assert torch.equal(mixed[2], model(ids).logits[2])
        model.set_adapter("whole")  # whose own module is used again
        assert not torch.allclose(model(ids).logits[0], mixed[2], atol=1e-2)


@pytest.mark.parametrize("name", ["DoRA", "a whole module", "parameters"])
def test_peft_refuses_or_miscomputes_what_is_not_batched(tiny_model_dir, llama_tokenizer, adapter, name):
    """If one of these no longer fails, peft can batch it now, and so may we."""
    from transformers import AutoModelForCausalLM

    one, two = adapter("one", lora(**BAD[name][0])), adapter("two", lora())
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    model = attach_adapters(base, {"one": one, "two": two}).eval()
    assert unbatchable_on(model, "one")
    rows = [llama_tokenizer("The quick brown fox")["input_ids"]] * 2

    def answers(names: list[str] | None) -> list[str]:
        return list(complete(model, llama_tokenizer, rows, Sampling(8), 2, names))

    model.set_adapter("one")
    alone = answers(None)[0]
    model.set_adapter("two")
    try:
        mixed = answers(["one", "two"])
    except (KeyError, ValueError):
        return
    assert mixed[0] != alone


@pytest.mark.parametrize("kind", ["prefix", "ia3"])
def test_other_kinds_answer_beside_lora(tiny_model_dir, adapter, kind):
    """peft refuses two kinds on one model: `generate` ended in a traceback."""
    one, two = adapter("one", other(kind)), adapter("two", lora())
    assert "LoRA only" in batchable(config_of(one, "adapters"))
    prompts = [Prompt(text, name) for text in PROMPTS for name in ("one", "two", BASE)]
    mixed = by_name(asked(tiny_model_dir, {"one": one, "two": two}, prompts))
    assert mixed["one"] == by_name(asked(tiny_model_dir, {"one": one}))["one"]
    assert mixed["two"] == by_name(asked(tiny_model_dir, {"two": two}))["two"]
    assert mixed[BASE] == by_name(asked(tiny_model_dir, {}))[BASE]


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"bias": "lora_only"}, EXPERTS, {"use_rslora": True}])
def test_the_base_answers_beside_adapters_as_it_does_alone(tiny_model_dir, adapter, changes):
    prompts = [Prompt(text, name) for text in PROMPTS for name in ("one", BASE)]
    found = asked(tiny_model_dir, {"one": adapter("one", lora(**changes))}, prompts, batch=3)
    assert [(one.prompt, one.adapter) for one in found] == [(p.text, p.adapter) for p in prompts]
    assert by_name(found)[BASE] == by_name(asked(tiny_model_dir, {}))[BASE]


def test_a_mixed_batch_is_one_forward_pass_and_differs_by_nothing(tiny_model_dir, llama_tokenizer, adapter):
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    named = {name: adapter(name, lora()) for name in ("one", "two", "three")}
    model = attach_adapters(base, named).eval()
    ids = torch.tensor([llama_tokenizer("The quick brown fox")["input_ids"]] * 4)
    with torch.no_grad():
        mixed = model(ids, adapter_names=[*named, NO_ADAPTER]).logits
        for row, name in enumerate(named):
            model.set_adapter(name)
            assert torch.equal(mixed[row], model(ids).logits[row])
        with model.disable_adapter():
            assert torch.equal(mixed[3], model(ids).logits[3])


def test_adapters_share_a_base_unless_they_change_it(adapter):
    """peft refuses an adapter beside one with trained tokens, and two kinds on one model."""
    kinds = {"a": lora(), "b": lora(use_dora=True), "c": lora(bias="lora_only"), "d": other("ia3"), "e": lora()}
    made = {name: adapter(name, config) for name, config in kinds.items()}
    found = [(load.kind, list(load.adapters), set(load.mixed)) for load in loads_of(made)]
    assert found == [("LORA", ["a", "b", "e"], {"a", "e"}), ("LORA", ["c"], set()), ("IA3", ["d"], set())]
    assert kind_of(kinds["d"]) == "IA3"


def test_a_directory_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterError, match=r"has no adapter_config.json"):
        list(mixed_batch.loads_of({"one": tmp_path}))
