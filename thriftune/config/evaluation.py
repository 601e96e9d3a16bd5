"""The section of a run file about what is measured while a model trains."""

from pydantic import Field, PositiveInt

from thriftune.config.data import Section


class EvaluationConfig(Section):
    """What is measured before, during and after training, on the machines that train."""

    every_steps: PositiveInt | None = Field(
        default=None, description="Optimizer steps between two validations; a tenth of all steps when left out."
    )
    saved_model: bool = Field(
        default=False,
        description="Also load the result again in a separate task, and measure it on the same rows.",
    )
    watch_general: bool = Field(
        default=False,
        description="At each validation, also measure the loss of the right answers to general-mini, the general "
        "questions that ship with thriftune: where it rises, the model forgets. Not for task classification.",
    )
    max_rows: PositiveInt = Field(default=500, description="Most held-out rows to measure loss on.")
    batch: PositiveInt = Field(default=4, description="Most rows per forward pass.")
    prompts: tuple[str, ...] = Field(
        default=(), description="Questions to answer before and after training; the first held-out rows when left out."
    )
    max_new_tokens: PositiveInt = Field(default=64, description="Longest answer, in tokens.")
