"""Computing with other weights than a model holds, for as long as a module runs."""

import pytest
import torch

from thriftune.models.substitution import computing_with


class Reaching(torch.nn.Module):
    """Multiplies with the weight of a module that does not run, as Jamba does."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.inner = torch.nn.Linear(4, 4, dtype=torch.bfloat16)

    def forward(self, x):
        return torch.nn.functional.linear(x * self.scale, self.inner.weight)


def test_a_module_has_the_other_weights_while_it_runs_and_its_own_again():
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    held = layer.weight.data
    with computing_with(layer, lambda _, parameter: torch.eye(4)):
        out = layer(torch.arange(4.0))
    assert out.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert layer.weight.data.data_ptr() == held.data_ptr()


def test_a_model_that_fails_has_its_own_weights_again():
    """It trained on with fp32 ones in their place, which nothing steps."""
    model = Reaching()
    with (
        pytest.raises(RuntimeError, match="dtype"),
        computing_with(model, lambda _, parameter: parameter.detach().float()),
    ):
        model(torch.ones(4))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
