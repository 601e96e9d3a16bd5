"""What a preflight finds: findings with stable codes, facts worth showing, and the error when a run cannot start."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from thriftune.data.statistics import Bin
from thriftune.errors import Problem, TransientError, UserError
from thriftune.redaction import redacted

Severity = Literal["error", "warning", "note"]

UNREACHABLE = "hub-unreachable"

# Every code there is, with its severity and what it means. docs/preflight.md shows this table.
CODES: dict[str, tuple[Severity, str]] = {
    "model-not-found": ("error", "There is no such base model, or the token cannot see it."),
    "model-revision-not-found": ("error", "The base model has no such commit, tag or branch."),
    "model-gated": ("error", "The base model is gated, and the token's account has no access to it."),
    "model-unreadable": ("error", "The base model's source may not be read, or its files are damaged."),
    "model-incomplete": ("error", "config.json, the tokenizer, or files of weights are missing or cut short."),
    "model-weights-missing": ("error", "Weights that config.json asks for are missing, or have another shape."),
    "model-config-invalid": ("error", "transformers cannot build a language model from its config.json."),
    "tokenizer-broken": ("error", "The tokenizer cannot be loaded."),
    "tokenizer-slow": ("error", "The tokenizer knows no character offsets, so answers cannot be located in tokens."),
    "tokenizer-no-eos": ("error", "The tokenizer has no EOS token, so no answer would end."),
    "chat-template-missing": ("error", "The data are conversations, and the tokenizer has no chat template."),
    "chat-template-fails": ("error", "The chat template renders none of the conversations."),
    "pad-outside-embedding": ("error", "The pad token has no row in the embedding table."),
    "token-outside-embedding": ("error", "Rows hold tokens that have no row in the embedding table."),
    "max-length-beyond-table": ("error", "data.max_length is more than the model's position table holds."),
    UNREACHABLE: ("error", "The hub or a store did not answer; Flyte tries again."),
    "hub-token-refused": ("error", "The hub refuses the token."),
    "secret-missing": ("error", "A secret that the tasks ask for is not there."),
    "output-not-writable": ("error", "The bucket or folder that results go to cannot be written."),
    "output-too-little-room": ("error", "The disk that a local run writes to has too little room for what it makes."),
    "publish-no-token": ("error", "Publishing needs a hub token, and there is none."),
    "publish-no-write-access": ("error", "The token may not write to the repository to publish to."),
    "data-not-found": ("error", "There is no such file or dataset, or the token cannot see it."),
    "data-revision-not-found": ("error", "The dataset has no such commit, tag or branch."),
    "data-split-not-found": ("error", "The dataset has no such split or subset."),
    "data-gated": ("error", "The dataset is gated, and the token's account has no access to it."),
    "data-unreadable": ("error", "A source may not be read, is damaged, or is of a kind that is not read."),
    "data-empty": ("error", "A source holds no rows."),
    "data-columns-missing": ("error", "A source lacks columns that its format needs."),
    "table-missing": ("error", "The run reads the workflow's table, and was given none."),
    "table-unused": ("error", "The workflow was given a table that the run does not read."),
    "too-few-rows": ("error", "Fewer than two rows that differ cannot be split into training and held-out ones."),
    "too-many-rejected": ("error", "More rows than data.max_rejected cannot be used."),
    "no-training-rows": ("error", "Nothing is left to train on."),
    "no-held-out-rows": ("error", "Nothing is left to measure loss on."),
    "all-rows-too-long": ("error", "Every row is longer than data.max_length and would be cut or dropped."),
    "eos-never-trained": ("error", "No row trains the EOS token, so answers would never end."),
    "pad-trained": ("error", "Rows train the pad token, which later tools leave out of the loss."),
    "lora-target-missing": ("error", "The architecture has no module of a name in lora.target_modules."),
    "lora-refused": ("error", "peft refuses these adapters on this architecture."),
    "quantization-saves-nothing": ("error", "Too little of the model can be in 4 bits for that to save memory."),
    "adapter-not-found": ("error", "There is no adapter to go on from at lora.resume_from."),
    "adapter-unreadable": ("error", "The adapter to go on from is not what was saved, or links out of its directory."),
    "adapter-shape-differs": ("error", "The adapter to go on from has another rank, alpha or modules than the run."),
    "adapter-weights-misfit": ("error", "The weights of the adapter to go on from are not all there, or do not fit."),
    "checkpoint-not-found": ("error", "There is no whole checkpoint to go on from at checkpoints.resume_from."),
    "checkpoint-differs": ("error", "The checkpoint to go on from is of another training than the run."),
    "plan-does-not-fit": ("error", "No plan works: memory, disk, /dev/shm, batch, or hardware that is not there."),
    "zero-config-invalid": ("error", "The DeepSpeed configuration is unknown, contradictory or misspelt."),
    "wrong-workflow": ("error", "The run is written for the other method's workflow."),
    "evaluation-prompt-unusable": ("error", "A prompt to evaluate with is empty, or the chat template refuses it."),
    "model-weights-unused": ("warning", "Weights that the model has no place for, or files that are not read."),
    "model-holds-adapter": ("warning", "An adapter lies beside the model, and is left out."),
    "pad-is-eos": ("warning", "Pad is what ends a text or turn; tools that mask padding by id never train it."),
    "turn-end-is-no-token": ("warning", "The chat template ends an answer with no token to stop at."),
    "tokenizer-larger-than-embedding": ("warning", "The tokenizer knows more tokens than the embedding table holds."),
    "max-length-beyond-positions": ("warning", "data.max_length is more than the positions the model was made for."),
    "rows-too-long": ("warning", "Some rows are longer than data.max_length."),
    "key-not-read": ("warning", "Rows hold a key that looks like one that is read, or that another format reads."),
    "rejected-in-sample": ("warning", "Too many rows of the sample cannot be used; the rest may be better."),
    "fewer-rows-than-batch": ("warning", "There are fewer training rows than training.global_batch."),
    "max-steps-beyond-epochs": ("warning", "training.max_steps goes over the data more often than training.epochs."),
    "warmup-covers-all-steps": ("warning", "The learning rate never reaches its peak."),
    "evaluation-prompt-too-long": ("warning", "A prompt and its answer need more positions than the model has."),
    "quantization-saves-little": ("warning", "Less than half of the weights in the model's layers can be in 4 bits."),
    "adapter-other-base": ("warning", "The adapter to go on from was trained on another base model."),
    "checkpoint-goes-on-otherwise": ("warning", "The run goes on for other steps, or could not be compared in full."),
    "upload-exceeds-grace": ("warning", "A checkpoint takes longer to upload than a spot node's notice."),
    "turn-end-is-not-eos": ("note", "The chat template ends an answer with another token than EOS."),
    "license-not-found": ("note", "The base model does not say under which license it stands."),
    "other-keys": ("note", "Rows hold other keys that are not read."),
    "lora-on-fused-experts": ("note", "Adapters go on the fused experts of a mixture too, and dropout is 0."),
    "first-step-logged-only": ("note", "training.log_every is more than all steps: only the first is logged."),
    "check-skipped": ("note", "A check could not be made; the message says why."),
}  # fmt: skip

_RANKS: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


class PreflightError(UserError):
    """The run cannot work as it is; no GPU was asked for."""

    headline = "The run cannot start"


@dataclass(frozen=True)
class Finding:
    """One thing that was found. Secrets in its texts are taken out when it is made.

    Attributes:
        code: Key of `CODES`; it does not change between versions.
        severity: error: the run cannot start. warning: it can, and may not do what was meant. note: worth knowing.
        field: Where it stands in the YAML file.
        value: What stands there, as text.
        message: What that means.
        remedy: What to write or do instead.
    """

    code: str
    severity: Severity
    field: str
    value: str
    message: str
    remedy: str

    def __post_init__(self) -> None:
        for name in ("field", "value", "message", "remedy"):
            object.__setattr__(self, name, redacted(getattr(self, name)))

    @property
    def problem(self) -> Problem:
        """As a problem of an error, with the code at the end."""
        return Problem(self.field, self.value, self.message, f"{self.remedy} [{self.code}]".strip())


@dataclass(frozen=True)
class Facts:
    """What was learned of a run, besides what is wrong with it. Empty or None: it could not be found out.

    Attributes:
        model_version: What `thriftune.models.fetching.version` says of the base model.
        data_version: What `thriftune.data.sources.versions` says of the data.
        license: Of the base model.
        parameters: Of the base model.
        rows_sampled: Rows read.
        rows_total: Rows of all sources; None where the sample ended before they did and nobody says.
        is_whole: Whether the sample is all of the data.
        examples: Examples in the sample.
        lengths: Tokens of each example, before any is cut; the last bar holds all longer ones.
        longest: Tokens of the longest example.
        max_length: data.max_length.
        too_long: Share of the examples that are longer.
        trained_share: Share of the tokens that carry loss.
        training_rows: Token rows to train on; estimated from the sample where it is not all of the data.
        total_steps: Optimizer steps; estimated likewise.
        warmup_steps: How many of them the learning rate rises over.
        plan: What it runs on, in a line.
        upload_seconds: How long a node uploads a checkpoint.
    """

    model_version: str = ""
    data_version: str = ""
    license: str = ""
    parameters: int | None = None
    rows_sampled: int = 0
    rows_total: int | None = None
    is_whole: bool = False
    examples: int = 0
    lengths: tuple[Bin, ...] = ()
    longest: int = 0
    max_length: int = 0
    too_long: float | None = None
    trained_share: float | None = None
    training_rows: int | None = None
    total_steps: int | None = None
    warmup_steps: int | None = None
    plan: str = ""
    upload_seconds: float | None = None


@dataclass(frozen=True)
class Preflight:
    """What a preflight came to.

    Attributes:
        run: Name of the run.
        findings: Errors first, then warnings, then notes.
        facts: What was learned.
    """

    run: str
    findings: tuple[Finding, ...] = ()
    facts: Facts = field(default_factory=Facts)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What the run cannot start with."""
        return self.of("error")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def require_ok(self) -> None:
        """Refuse a run that cannot work.

        Raises:
            TransientError: All that is wrong is that the hub or a store did not answer.
            PreflightError: With every error, its code at the end of each.
        """
        if not self.errors:
            return
        if all(finding.code == UNREACHABLE for finding in self.errors):
            raise TransientError("; ".join(str(finding.problem) for finding in self.errors))
        raise PreflightError([finding.problem for finding in self.errors])

    def as_json(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return {
            "run": self.run,
            "ok": not self.errors,
            "counts": {severity: len(self.of(severity)) for severity in _RANKS},
            "findings": [asdict(found) for found in self.findings],
            "facts": asdict(self.facts),
        }


def finding(code: str, name: str, value: object, message: str, remedy: str = "") -> Finding:
    """A finding, with the severity that its code has.

    Args:
        code: Key of `CODES`.
        name: The field.
        value: What stands there.
        message: What that means.
        remedy: What to do.
    """
    return Finding(code, CODES[code][0], name, str(value), message, remedy)


def of_problem(code: str, problem: Problem) -> Finding:
    """A problem of an error as a finding."""
    return finding(code, problem.field, problem.value, problem.message, problem.remedy)


def skipped(check: str, reason: str) -> Finding:
    """A note that a check could not be made."""
    return finding("check-skipped", check, "", f"not checked: {reason}.")


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors first; what was found twice, once."""
    first: dict[tuple[str, str, str], Finding] = {}
    for found in findings:
        first.setdefault((found.code, found.field, found.message), found)
    return tuple(sorted(first.values(), key=lambda found: _RANKS[found.severity]))
