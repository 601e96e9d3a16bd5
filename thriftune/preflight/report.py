"""The report of a preflight: a table for the log, and a page without external resources."""

import io
from collections.abc import Iterator

from thriftune import pages
from thriftune.data.report import number, percent, share
from thriftune.preflight.findings import Facts, Preflight

_LOG_COLUMNS = 110


def text(preflight: Preflight) -> str:
    """The findings as plain text, on a screen or two."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Preflight of {preflight.run}: {verdict(preflight)}", title_justify="left", show_lines=True)
    table.add_column("", no_wrap=True)
    table.add_column("code", no_wrap=True)
    table.add_column("where", ratio=2, overflow="fold")
    table.add_column("what, and what to do", ratio=3, overflow="fold")
    for found in preflight.findings:
        where = f"{found.field} = {found.value}" if found.value else found.field
        table.add_row(found.severity, found.code, Text(where), Text(f"{found.message} {found.remedy}".strip()))
    # No colours in a log, whatever the environment says.
    console = Console(file=io.StringIO(), width=_LOG_COLUMNS, force_terminal=False)
    if preflight.findings:
        console.print(table)
    else:
        console.print(Text(f"Preflight of {preflight.run}: {verdict(preflight)}"))
    for label, value in facts_in_words(preflight.facts):
        console.print(Text(f"{label}: {value}"), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def html(preflight: Preflight) -> str:
    """The findings as one page without external resources; texts of a configuration or a row are escaped."""
    return pages.render(
        "preflight/report.html.jinja",
        {"number": number, "percent": percent, "share": share},
        preflight=preflight,
        facts=preflight.facts,
        verdict=verdict(preflight),
        words=list(facts_in_words(preflight.facts)),
    )


def verdict(preflight: Preflight) -> str:
    """The number of findings of each severity, such as: 2 errors, 1 warning; or: nothing is wrong."""
    counts = {severity: len(preflight.of(severity)) for severity in ("error", "warning", "note")}
    said = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    return ", ".join(said) or "nothing is wrong"


def facts_in_words(facts: Facts) -> Iterator[tuple[str, str]]:
    """The facts as (label, value), without those that are not known."""
    yield from (
        (label, value)
        for label, value in (
            ("plan", facts.plan),
            ("base model", facts.model_version),
            ("license", facts.license),
            ("parameters", "" if facts.parameters is None else number(facts.parameters)),
            ("data", facts.data_version),
            ("rows read", _rows(facts)),
            ("tokens trained on", "" if facts.trained_share is None else percent(facts.trained_share)),
            ("longest example", f"{number(facts.longest)} tokens" if facts.longest else ""),
            ("steps", _steps(facts)),
            ("upload of a checkpoint", f"{facts.upload_seconds:.0f} s" if facts.upload_seconds else ""),
        )
        if value
    )


def _rows(facts: Facts) -> str:
    if not facts.rows_sampled:
        return ""
    if facts.is_whole:
        return f"{number(facts.rows_sampled)}, which are all"
    return f"{number(facts.rows_sampled)} of {'unknown' if facts.rows_total is None else number(facts.rows_total)}"


def _steps(facts: Facts) -> str:
    if facts.total_steps is None or facts.training_rows is None:
        return ""
    about = "" if facts.is_whole else "about "
    return f"{number(facts.total_steps)}, over {about}{number(facts.training_rows)} training rows"
