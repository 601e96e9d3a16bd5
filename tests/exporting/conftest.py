"""Models to export, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from exporting.exported_models import MODELS, bytes_tokenizer, pieces_tokenizer, save_model


@pytest.fixture(scope="session")
def model_of(tmp_path_factory) -> Callable[[str], Path]:
    """Make a model by its name in MODELS, once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            kind, split, changes = MODELS[name]
            tokenizer = pieces_tokenizer() if split == "pieces" else bytes_tokenizer(split)
            made[name] = save_model(tmp_path_factory.mktemp(name), kind, tokenizer, changes)
        return made[name]

    return make
