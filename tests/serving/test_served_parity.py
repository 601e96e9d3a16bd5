"""What a server has loaded is each adapter on its base: the same next tokens, and answers that end the same."""

from pathlib import Path
from typing import Any

import pytest

from thriftune.hardware import DEVICES
from thriftune.inference.parity import checking, reference, rows
from thriftune.inference.parity.allowed import ALLOWED
from thriftune.inference.parity.report import Parity
from thriftune.inference.serving.loaded import Loaded, load
from thriftune.models.adapter_weights import attach
from thriftune.models.completeness import load_causal_lm
from thriftune.models.loading import Placement
from thriftune.models.tokenizer import load_tokenizer

CPU = Placement(DEVICES["CPU"], "fp32")
SERVED = ("a1", "a2")


class Answering:
    """The model of a server as it answers rows of one adapter: in its batch, with the arguments that it gives there."""

    def __init__(self, loaded: Loaded, name: str) -> None:
        self.loaded, self.name = loaded, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loaded.model, name)

    def __call__(self, **given: Any) -> Any:
        return self._with_adapter(self.loaded.model, given)

    def generate(self, **given: Any) -> Any:
        return self._with_adapter(self.loaded.model.generate, given)

    def _with_adapter(self, compute: Any, given: dict[str, Any]) -> Any:
        names = [self.name] * len(given["input_ids"])
        with self.loaded.answering(self.loaded.batch_of(self.name), names) as options:
            options.pop("logits_to_keep", None)  # every position is compared, and not the last alone
            return compute(**given, **options)


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, module_adapters: dict[str, Path]) -> dict[str, reference.Reference]:
    """Each adapter on its base, alone in memory and asked by itself."""
    tokenizer = load_tokenizer(tiny_model_dir, padding_side="left")
    asked = rows.of_general(tokenizer, "chat")
    found = {}
    for name in SERVED:
        adapted: Any = attach(load_causal_lm(tiny_model_dir), module_adapters[name])
        found[name] = reference.of_model(adapted.eval(), tokenizer, asked)
    return found


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path, module_adapters: dict[str, Path]) -> Loaded:
    return load(tiny_model_dir, {name: module_adapters[name] for name in SERVED}, CPU)


def parity_of(trained: reference.Reference, loaded: Loaded, name: str) -> Parity:
    served: Any = Answering(loaded, name)
    return checking.run(trained, served, loaded.tokenizer, ALLOWED["served"], Parity("served", []))


@pytest.mark.parametrize("name", SERVED)
def test_what_a_server_has_loaded_is_what_was_trained(trained, loaded, name):
    assert loaded.batch_of(name).is_mixed
    parity = parity_of(trained[name], loaded, name)
    assert parity.passes, parity.sentence
    assert parity.tokens > 100
    assert set(loaded.stops) == {*trained[name].stops, *trained[name].listed}


@pytest.mark.parametrize(("asked", "served"), [SERVED, SERVED[::-1]])
def test_another_adapter_is_not(trained, loaded, asked, served):
    """Else the test before could not fail."""
    found = parity_of(trained[asked], loaded, served)
    assert "outputs" in {difference.what for difference in found.differences}
