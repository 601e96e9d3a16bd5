"""How long a whole run takes: its steps, and what is done once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from thriftune.batching import Batch
from thriftune.config import RunConfig
from thriftune.data.general import general_items
from thriftune.devices import Speed
from thriftune.models.architecture import Architecture
from thriftune.planning.choices import Choice
from thriftune.planning.ledger import Correction, Evidence, Experience, Record, Setup, Trial, run_key
from thriftune.planning.ledger.record import present_versions
from thriftune.planning.offers import THIS_MACHINE
from thriftune.planning.time import cpu
from thriftune.planning.time.step import links, of_step, pass_seconds
from thriftune.strategies import Machines
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.work import PassWork
from thriftune.training_plan import RunTime, StepTime

START, FETCH, LOAD, VALIDATE = "nodes and image", "model to the node", "loading", "validations"

# Factors between which the truth is 90 % likely without any run: what plans were off by, compared with published speeds
# (docs/planning.md).
ERROR = (0.6, 1.6)
# Assumptions: until a node with a GPU is there and has pulled an image of some GB; bytes per second at which a process
# reads weights and puts them where they train; and of a store's connection, where the network is faster.
_START_SECONDS, _LOADED_PER_SECOND, _FETCHED_PER_SECOND = 300.0, 1e9, 0.5e9
_IMPORT_SECONDS = 10.0
_FROM_CPU = "from this CPU's speed, measured a moment ago"
_HALF = 2
# A validation each tenth of the run, and one before and one after it.
_VALIDATIONS = 12
# Tokens of a question of general-mini and its answer in SmolLM2's chat template, on average.
_GENERAL_TOKENS = 47


@dataclass(frozen=True)
class Size:
    """How many rows a run has, and how long they are.

    Attributes:
        rows: Rows that are trained on, packed ones where the run packs; 0 where this is not known.
        lengths: Tokens of some examples, in the order of the data, each at most the longest that the run allows.
        said: Where this is known from, as text.
    """

    rows: int
    lengths: tuple[int, ...]
    said: str


def full_rows(config: RunConfig) -> Size:
    """What is assumed where nothing is known of the rows: each is as long as the run allows.

    Args:
        config: The run.
    """
    return Size(0, (config.data.max_length,), "rows of full length, as none were read")


@dataclass(frozen=True)
class Times:
    """The times of a run on the machines that it may have.

    Attributes:
        config: The run.
        architecture: Its model, with what its method adds.
        size: Its rows.
        records: The ledger.
    """

    config: RunConfig
    architecture: Architecture
    size: Size
    records: Sequence[Record] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps; 0 where the number of rows is not known."""
        training = self.config.training
        if training.max_steps:
            return training.max_steps
        return math.ceil(training.epochs * self.size.rows / training.global_batch)

    def of(self, choice: Choice, step_shape: StepShape) -> RunTime | None:
        """The time of a run on some machines; None where the speed of their devices is not known.

        Args:
            choice: The machines, and how they are used.
            step_shape: What one forward and backward pass of a process computes.
        """
        speed = _speed(choice)
        if speed is None or not speed.of(choice.precision):
            return None
        whole = self._work(choice, step_shape)
        work = _scaled(whole, self._fill(choice.batch))
        step = self._step(choice, step_shape, work, speed)
        correction = self.correction(choice)
        step = StepTime({part: correction.factor * s for part, s in step.parts.items()}, step.waiting)
        return RunTime(
            step=step,
            error=(correction.low / correction.factor, correction.high / correction.factor),
            correction=correction.factor,
            tokens_per_step=self.config.training.global_batch * self._tokens_per_row(),
            tokens_from=self.size.said,
            leans_on=correction.leans_on if correction.count or choice.offer.device.speed else _FROM_CPU,
            steps=self.steps,
            beside=self._beside(choice, work, speed),
            full_seconds=correction.factor * self._step(choice, step_shape, whole, speed).seconds,
        )

    def correction(self, choice: Choice) -> Correction:
        """What earlier runs say of the time of a step.

        Args:
            choice: The machines, and how they are used.
        """
        return self._experience.correction(self._setup(choice), "seconds_per_step", ERROR)

    def evidence(self, choice: Choice) -> Evidence | None:
        """What earlier runs say of a way to run; None if there are none.

        Args:
            choice: The machines, and how they are used.
        """
        if not self.records:
            return None
        batch = choice.batch
        tried = Trial(self._run_key, choice.settings, batch.micro_batch, batch.accumulation)
        return Evidence(self._experience, self._setup(choice), tried)

    @cached_property
    def _experience(self) -> Experience:
        return Experience.of(self.records)

    @cached_property
    def _run_key(self) -> str:
        return run_key(self.config)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return present_versions() if self.records else {}

    def _setup(self, choice: Choice) -> Setup:
        return Setup(
            device=choice.offer.device.name,
            instance=choice.offer.name,
            nodes=choice.nodes,
            devices_per_node=choice.devices_per_node,
            strategy=choice.strategy.name,
            method=self.config.method,
            family=self.architecture.family,
            precision=choice.precision,
            versions=self._versions,
        )

    def _work(self, choice: Choice, step_shape: StepShape) -> PassWork:
        return measure(self.architecture, choice.strategy.computed(step_shape)).work

    def _step(self, choice: Choice, step_shape: StepShape, work: PassWork, speed: Speed) -> StepTime:
        device = choice.offer.device
        machines = Machines(device, choice.offer.gpu_gib, choice.nodes, choice.devices_per_node)
        batch = choice.batch
        coordination = choice.strategy.coordination(
            self.architecture, step_shape, machines, choice.settings, batch.accumulation
        )
        cpus = choice.offer.cpus * choice.share / choice.devices_per_node
        network = choice.offer.network_gbps * 1e9 / 8
        return of_step(
            work.whole,
            coordination,
            speed,
            links(speed, nodes=choice.nodes, network=network, cpus=cpus),
            accumulation=batch.accumulation,
            devices_per_node=choice.devices_per_node,
            eight_bit="8bit" in self.config.training.optimizer,
            is_queued=device.is_gpu,
        )

    def _tokens_per_row(self) -> float:
        lengths, longest = self.size.lengths, self.config.data.max_length
        return float(longest) if self.config.data.packing else sum(lengths) / len(lengths)

    def _fill(self, batch: Batch) -> float:
        """Tokens that are computed, as a share of full rows: a row is padded to the longest one beside it."""
        if self.config.data.packing:
            return 1.0
        lengths: Sequence[int] = self.size.lengths
        if self.config.training.group_by_length:
            lengths = sorted(lengths)
        beside = [lengths[start : start + batch.micro_batch] for start in range(0, len(lengths), batch.micro_batch)]
        return sum(map(max, beside)) / len(beside) / self.config.data.max_length

    def _general_rows(self) -> float:
        """As many rows of the run's length as the general questions, which are short, take the time of."""
        if not self.config.evaluation.watch_general:
            return 0.0
        lengths = self.size.lengths
        return len(general_items()) * min(1.0, _GENERAL_TOKENS * len(lengths) / sum(lengths))

    def _beside(self, choice: Choice, work: PassWork, speed: Speed) -> dict[str, float]:
        """Seconds by what is done once, besides the steps."""
        batch, evaluation = choice.batch, self.config.evaluation
        held = _HALF * self.architecture.parameters
        is_here = choice.offer.name == THIS_MACHINE
        network = min(choice.offer.network_gbps * 1e9 / 8 or _FETCHED_PER_SECOND, _FETCHED_PER_SECOND)
        held_out = self.config.data.validation_share * self.size.rows or evaluation.max_rows
        rows = min(evaluation.max_rows, held_out) + self._general_rows()
        times = 2 + self.steps // evaluation.every_steps if evaluation.every_steps else _VALIDATIONS
        forward = sum(pass_seconds(work.forward, speed, is_queued=choice.offer.device.is_gpu).values())
        found = {
            START: 0.0 if is_here else _START_SECONDS,
            FETCH: 0.0 if is_here else held / network,
            LOAD: _IMPORT_SECONDS + held / _LOADED_PER_SECOND,
            VALIDATE: times * math.ceil(rows / (batch.micro_batch * batch.world_size)) * forward,
        }
        return {what: seconds for what, seconds in found.items() if seconds}


def _speed(choice: Choice) -> Speed | None:
    """The device's speed: of this machine's CPU as it is measured now; None where it is not known."""
    device = choice.offer.device
    if device.speed is None and not device.is_gpu and choice.offer.name == THIS_MACHINE:
        return cpu.measured(choice.precision, choice.devices_per_node)
    return device.speed


@lru_cache(maxsize=256)
def _scaled(work: PassWork, fill: float) -> PassWork:
    """The work of a pass over rows with fewer tokens."""
    return PassWork(work.forward.with_fewer_tokens(fill), work.backward.with_fewer_tokens(fill))
