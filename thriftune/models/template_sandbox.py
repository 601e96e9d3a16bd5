"""Chat templates in transformers' own sandbox, with limits on what they may cost.

A template is a program from a model's repository. Jinja's sandbox keeps it away from files and Python's own objects,
but does not stop it from looping for ever, or from writing gigabytes in one expression. The counts here are the same on
every machine, so that the same rows are set aside.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from thriftune.limits import RENDER_CHARACTERS, RENDER_SECONDS, RENDER_STEPS, TEMPLATE_CHARACTERS
from thriftune.models import template_costs
from thriftune.models.template_costs import OverBudgetError, require_size, written

if TYPE_CHECKING:
    from jinja2 import Template

_COUNTED, _CONCATENATED, _BOUNDED = "thriftune_counted", "thriftune_concatenated", "thriftune_bounded"
_KEPT = "thriftune_kept"
_LOOK_AT_CLOCK = 64  # steps between two looks
_STEPS_OF_A_CALL = 10  # a call takes as long as this many turns of an empty loop
_WRITTEN_IN_A_STEP = 1024  # characters
# Filters that pass their input on as a stream.
_STREAMING = ("batch", "first", "map", "reject", "rejectattr", "select", "selectattr", _COUNTED)


class Budget:
    """The limits on all renderings of one row together."""

    def __init__(self, part: int = 1) -> None:
        """Start counting.

        Args:
            part: Divides the limits on steps and seconds of a row.
        """
        self._most_steps, self._most_seconds = RENDER_STEPS // part, RENDER_SECONDS // part
        self._steps = self._seen = self._characters = 0
        self._started = time.thread_time()

    def begin_rendering(self) -> None:
        """Start a rendering: texts made before are gone."""
        self._characters = 0

    def keep(self, size: int) -> None:
        """Count a text that may be kept until the end of the rendering.

        Args:
            size: Its number of characters.

        Raises:
            OverBudgetError: Together with earlier texts, it is too large.
        """
        self._characters += size
        if self._characters > RENDER_CHARACTERS:
            raise OverBudgetError(f"makes more than {RENDER_CHARACTERS:,} characters of intermediate texts")

    def step(self, count: int = 1) -> None:
        """Count steps.

        Args:
            count: Number of steps.

        Raises:
            OverBudgetError: There were too many steps, or they took too long.
        """
        self._steps += count
        if self._steps > self._most_steps:
            raise OverBudgetError(f"takes more than {self._most_steps:,} steps")
        if self._steps - self._seen >= _LOOK_AT_CLOCK:
            self._seen = self._steps
            if time.thread_time() - self._started > self._most_seconds:
                raise OverBudgetError(f"takes more than {self._most_seconds} seconds")


_active: ContextVar[Budget | None] = ContextVar("the budget of a row", default=None)


@contextmanager
def budget(part: int = 1) -> Iterator[Budget]:
    """Give all renderings in the block one budget, and put templates into the sandbox.

    Args:
        part: As for `Budget`.

    Yields:
        The budget; inside another such block, that block's.
    """
    from transformers.utils import chat_template_utils

    # transformers 5.23 accepts no environment. Remove this when transformers itself limits what a template costs.
    vars(chat_template_utils)["_compile_jinja_template"] = compiled
    if (outer := _active.get()) is not None:
        yield outer
        return
    token = _active.set(Budget(part))
    try:
        yield _current()
    finally:
        _active.reset(token)


def compiled(template: str) -> "Template":
    """A chat template, compiled as transformers does, with its steps and texts counted.

    Args:
        template: Its source.

    Raises:
        OverBudgetError: It is too long.
        jinja2.TemplateError: It is not a valid template.
    """
    made = _compiled(template)
    if isinstance(made, Exception):
        raise made.with_traceback(None)  # else it would keep alive everything that ever raised it
    return made


@lru_cache(maxsize=16)
def _compiled(template: str) -> "Template | Exception":
    """The template, or its error, found once and not again for each row."""
    from transformers.utils import chat_template_utils

    if len(template) > TEMPLATE_CHARACTERS:
        return OverBudgetError(f"has more than {TEMPLATE_CHARACTERS:,} characters")
    # An empty template first: constant expressions are evaluated while they are compiled.
    compiled = chat_template_utils._cached_compile_jinja_template  # noqa: SLF001 - the one that transformers renders by
    environment = compiled("").environment
    _bound(environment)
    try:
        made = environment.from_string(template)
    except Exception as error:  # noqa: BLE001 - out of the source: of Jinja, of Python's own compiler, of its stack
        return error
    render = made.root_render_func
    made.root_render_func = lambda context: _whole(render(context))
    return made  # type: ignore[no-any-return]


def _bound(environment: Any) -> None:
    """Make an environment count."""
    # Jinja expects a subclass to override _parse, but transformers makes the environment.
    parse, call, namespace = environment._parse, environment.call, environment.globals["namespace"]  # noqa: SLF001

    def parse_counted(*source: Any) -> Any:
        tree = _instrumented(parse(*source))
        return tree.set_environment(environment)

    environment._parse = parse_counted  # noqa: SLF001
    environment.call = lambda context, function, /, *args, **kwargs: _kept(
        call(context, function, *_charged(function, args, kwargs), **kwargs)
    )
    environment.intercepted_binops = frozenset(("+", "*", "**", "%"))
    environment.binop_table = {name: _charged_operator(name, f) for name, f in environment.binop_table.items()}
    environment.finalize = _bounded
    environment.concat = lambda pieces: _kept("".join(_measured(pieces)))
    environment.filters = {name: _charged_filter(name, f) for name, f in environment.filters.items()}
    environment.filters |= {_COUNTED: _counted, _CONCATENATED: _concatenated, _BOUNDED: _bounded, _KEPT: _kept}
    # Its own text would include everything that it holds.
    environment.globals["namespace"] = type("Namespace", (namespace,), {"__repr__": lambda _self: "<Namespace>"})
    del environment.globals["lipsum"]


def _instrumented(node: Any) -> Any:
    """A part of a template with its loops counted and its results measured."""
    from jinja2 import nodes

    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, field, _instrumented(value))
        elif isinstance(value, list):
            value[:] = [_instrumented(part) if isinstance(part, nodes.Node) else part for part in value]
    if isinstance(node, nodes.For):
        node.iter = _filtered(node.iter, _COUNTED)
    elif isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCATENATED)
    elif isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filtered(node, _BOUNDED)
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _filtered(node, _KEPT)
    return node


def _filtered(node: Any, name: str) -> Any:
    from jinja2 import nodes

    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _current() -> Budget:
    return _active.get() or Budget()


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    spent = _current()
    for value in values:
        spent.step()
        yield value


def _gathered(values: Iterator[Any]) -> list[Any]:
    """Collect all values of a stream, which may be much larger than its source."""
    gathered, size = [], 0
    for value in _counted(values):
        size += written(value)
        require_size(size)
        gathered.append(value)
    return gathered


def _pay(size: int) -> None:
    """Count a text that is about to be made.

    Args:
        size: Its number of characters.
    """
    require_size(size)
    _current().step(1 + size // _WRITTEN_IN_A_STEP)


def _concatenated(values: list[Any]) -> str:
    _pay(written(values))
    return str(_kept("".join(map(str, values))))


def _bounded(value: Any) -> Any:
    _pay(written(value))
    return value


def _kept(made: Any) -> Any:
    """Count a value that variables may keep, and return it."""
    _current().keep(template_costs.of_result(made))
    return made


def _whole(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces that a template writes, counted from the start of a rendering."""
    _current().begin_rendering()
    yield from _measured(pieces)


def _measured(pieces: Iterable[str]) -> Iterator[str]:
    size = 0
    for piece in pieces:
        size += len(piece)
        require_size(size)
        yield piece


def _charged(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Count a call, and return its arguments; streams among them are counted as they are read."""
    from jinja2.runtime import LoopContext

    _current().step(_STEPS_OF_A_CALL)
    if isinstance(function, LoopContext):  # a recursive loop
        return (_counted(args[0]), *args[1:])
    args = tuple(_gathered(value) if isinstance(value, Iterator) else value for value in args)
    _pay(template_costs.of_call(function, args, kwargs))
    return args


def _charged_operator(name: str, operator: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def charged(left: Any, right: Any) -> Any:
        _pay(template_costs.of_operator(name, left, right))
        return _kept(operator(left, right))

    return charged


def _charged_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is counted before it runs."""
    cost = template_costs.OF_FILTERS.get(name)
    context = 1 if hasattr(function, "jinja_pass_arg") else 0  # the first argument, which Jinja itself passes

    @wraps(function)  # keeps the attributes that Jinja reads
    def charged(*args: Any, **kwargs: Any) -> Any:
        if name not in _STREAMING and isinstance(args[context], Iterator):
            args = (*args[:context], _gathered(args[context]), *args[context + 1 :])
        _pay(cost(*args[context:], **kwargs) if cost is not None else 0)
        return _kept(function(*args, **kwargs))

    return charged
