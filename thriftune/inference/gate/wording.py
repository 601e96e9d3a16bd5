"""Numbers of a comparison in words, for messages, tables and pages alike."""

from thriftune.inference.gate.comparison import Compared
from thriftune.inference.gate.statistics import Estimate


def value(number: float, one: Compared) -> str:
    """A value of a metric: `61.0%`, `1.2345`, or a length as `31.5`.

    Args:
        number: The value.
        one: The metric.
    """
    if one.kind == "relative":
        return f"{number:,.1f}"
    return f"{number:.1%}" if _is_share(one) else f"{number:.4f}"


def estimate(found: Estimate, one: Compared) -> str:
    """A value with its interval: `61.0% (55.4% to 66.4%)`.

    Args:
        found: The value of one model.
        one: The metric.
    """
    return f"{value(found.value, one)} {ends(found, one)}"


def ends(found: Estimate, one: Compared) -> str:
    """The interval of a value: `(55.4% to 66.4%)`.

    Args:
        found: The value of one model.
        one: The metric.
    """
    return f"({value(found.low, one)} to {value(found.high, one)})"


def size(number: float, one: Compared) -> str:
    """How large a change is: `2.0 points`, `0.0210`, or of a length `12.0%`.

    Args:
        number: The change.
        one: The metric.
    """
    return f"{abs(_scaled(number, one)):.{_digits(one)}f}{unit(one)}"


def change(one: Compared) -> str:
    """The change of a metric with its interval: `+2.0 points (-0.5 to +4.4)`.

    Args:
        one: The metric.
    """
    return " ".join(filter(None, change_parts(one)))


def change_parts(one: Compared) -> tuple[str, str]:
    """The change of a metric, and its interval: `+2.0 points` and `(-0.5 to +4.4)`.

    Args:
        one: The metric.
    """
    if one.is_unchanged and one.change.high == 0:
        return "no item changed", ""
    low, high = _signed(one.change.low, one), _signed(one.change.high, one)
    change = "no item changed" if one.is_unchanged else f"{_signed(one.change.value, one)}{unit(one)}"
    return change, f"({low} to {high})"


def range_of(one: Compared) -> str:
    """The interval of the change of a metric: `-0.5 to +4.4 points`.

    Args:
        one: The metric.
    """
    return f"{_signed(one.change.low, one)} to {_signed(one.change.high, one)}{unit(one)}"


def movement(one: Compared) -> str:
    """What a metric did: `it fell by 2.1 points`.

    Args:
        one: The metric.
    """
    if one.change.value == 0:
        return "it did not change"
    return f"it {'rose' if one.change.value > 0 else 'fell'} by {size(one.change.value, one)}"


def unit(one: Compared) -> str:
    """The unit of a change, with what separates it from the number.

    Args:
        one: The metric.
    """
    return "%" if one.kind == "relative" else " points" if _is_share(one) else ""


def _is_share(one: Compared) -> bool:
    """Whether a metric is a share, which people read in percent; losses and counts are not."""
    ends = (one.base.low, one.base.high, one.tuned.low, one.tuned.high)
    return one.kind == "mean" and all(0 <= end <= 1 for end in ends)


def _scaled(number: float, one: Compared) -> float:
    return number * 100 if unit(one) else number


def _digits(one: Compared) -> int:
    return 1 if unit(one) else 4


def _signed(number: float, one: Compared) -> str:
    return f"{_scaled(number, one):+.{_digits(one)}f}"
