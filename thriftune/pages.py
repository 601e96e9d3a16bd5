"""Reports as HTML: every report extends the same page, escapes its values, and loads and runs nothing."""

from collections.abc import Callable, Mapping


def render(template: str, functions: Mapping[str, Callable[..., object]], **values: object) -> str:
    """A report as one HTML page.

    Args:
        template: Path of the template below this package, for example `data/report.html.jinja`.
        functions: Functions that it calls besides Jinja's own, by name; also available as filters.
        **values: Values that it shows. A name that it uses but is not given is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("thriftune", "."),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= functions
    environment.globals |= functions
    return environment.get_template(template).render(values)
