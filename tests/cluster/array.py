"""Nodes that run a task once for each item of a list, by the rules of Flyte's engine.

Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/array/ (handler.go, utils.go, node_execution_context.go)
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from flyteidl.core.interface_pb2 import Variable
from flyteidl.core.literals_pb2 import Literal, LiteralMap, Scalar, Void
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import ArrayNode

# Of a node that says nothing: the engine's limit for a workflow.
_PARALLELISM = 25


def of_one(task: TaskTemplate) -> TaskTemplate:
    """The task as the cache sees it for one item: its outputs are no lists."""
    own = TaskTemplate()
    own.CopyFrom(task)
    for variable in own.interface.outputs.variables.values():
        if variable.type.WhichOneof("type") == "collection_type":
            variable.CopyFrom(Variable(type=variable.type.collection_type, description=variable.description))
    return own


@dataclass(frozen=True)
class Array:
    """A node that runs a task for each item.

    Attributes:
        node: The node.
        inputs: Its inputs.
    """

    node: ArrayNode
    inputs: LiteralMap

    @property
    def mapped(self) -> list[str]:
        """The inputs of which each item has its own."""
        literals = self.inputs.literals.items()
        lists = [name for name, literal in literals if literal.WhichOneof("value") == "collection"]
        return [name for name in lists if name not in self.node.bound_inputs]

    @property
    def size(self) -> int:
        """The number of items."""
        (size,) = {len(self.inputs.literals[name].collection.literals) for name in self.mapped}
        return int(size)

    def inputs_of(self, index: int) -> LiteralMap:
        """The inputs of one item."""
        own = LiteralMap()
        own.CopyFrom(self.inputs)
        for name in self.mapped:
            own.literals[name].CopyFrom(self.inputs.literals[name].collection.literals[index])
        return own

    def run(self, one: Callable[[int], LiteralMap], failure: type[Exception]) -> LiteralMap:
        """Run all items, and gather their outputs; one that failed has none.

        After too many failures no other begins; those that run go on, where Flyte would end them.

        Args:
            one: Runs one item.
            failure: What it raises if that failed for good.

        Raises:
            Exception: What one of too many raised.
        """
        failed, allowed = 0, self.size - self._required
        outputs: dict[int, LiteralMap | None] = {}
        with ThreadPoolExecutor(max(1, min(self.size, self._limit))) as pool:
            futures: dict[Future[LiteralMap], int] = {pool.submit(one, index): index for index in range(self.size)}
            for future in as_completed(futures):
                try:
                    outputs[futures[future]] = future.result()
                except failure:
                    failed += 1
                    outputs[futures[future]] = None
                    if failed > allowed:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return _gathered([outputs[index] for index in range(self.size)])

    @property
    def _limit(self) -> int:
        is_said = self.node.WhichOneof("parallelism_option") is not None
        return (self.node.parallelism or self.size) if is_said else _PARALLELISM

    @property
    def _required(self) -> int:
        said = self.node.WhichOneof("success_criteria")
        if said == "min_successes":
            return int(self.node.min_successes)
        return math.ceil(self.node.min_success_ratio * self.size) if said else self.size


def _gathered(outputs: list[LiteralMap | None]) -> LiteralMap:
    """Outputs of all items as lists."""
    result = LiteralMap()
    for name in sorted({name for output in outputs if output for name in output.literals}):
        result.literals[name].collection.SetInParent()
        nothing = Literal(scalar=Scalar(none_type=Void()))
        result.literals[name].collection.literals.extend(o.literals[name] if o else nothing for o in outputs)
    return result
