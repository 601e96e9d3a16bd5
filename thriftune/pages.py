"""Reports as HTML: every one extends the same page, escapes what it is given, and loads and runs nothing."""

from collections.abc import Callable, Mapping


def render(template: str, functions: Mapping[str, Callable[..., object]], **values: object) -> str:
    """A report as one HTML page.

    Args:
        template: Its file below this package, as `data/report.html.jinja`.
        functions: What it calls besides Jinja's own, by name; as filters too.
        values: What it shows. A name that it uses and is not given is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("thriftune", "."),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= functions
    environment.globals |= functions
    return environment.get_template(template).render(values)
