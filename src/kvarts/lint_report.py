"""What `kvarts data check` found, as text, JSON or a page of HTML; written as it is read, never all in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Final, TextIO

from kvarts import __version__
from kvarts.lint import KINDS, Findings, Report
from kvarts.lint_fix import Fixed

_MOST_ROWS: Final = 1000  # of each name in a page; a browser dies of a million

_STYLE: Final = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: 0.5em 0; } td, th { padding: 0.2em 0.8em; border-bottom: 1px solid #8884; }
td, th { text-align: left; vertical-align: top; } td.place { font-family: monospace; overflow-wrap: anywhere; }
td.number { text-align: right; } .error { color: #c22; } .warning { color: #a60; }
summary { font-weight: bold; cursor: pointer; margin-top: 1em; }
"""


def write_text(report: Report, fixed: Fixed | None, file: TextIO) -> None:
    """A line a finding, as compilers write them, then what was fixed, then the numbers."""
    for finding in report.findings:
        file.write(f"{finding}\n")
    if fixed is not None:
        for number in range(len(fixed.actions)):
            file.write(f"{fixed.actions[number]}\n")
    file.write(summary(report, fixed))


def summary(report: Report, fixed: Fixed | None) -> str:
    """The number of findings of each name, and of all."""
    rows = [f"{name:22} {KINDS[name].severity:8} {count:9}" for name, count in _counts(report.findings)]
    errors, warnings = report.findings.num_errors, len(report.findings) - report.findings.num_errors
    rows.append(f"{len(report.lines)} lines: {_plural(errors, 'error')}, {_plural(warnings, 'warning')}")
    if fixed is not None:
        rows.append(str(fixed))
    return "".join(f"{row}\n" for row in rows)


def write_json(report: Report, fixed: Fixed | None, file: TextIO) -> None:
    """One object: the numbers, then all findings, then what was fixed."""
    file.write("{\n")
    _member(file, "kvarts_version", __version__)
    _member(file, "lines", len(report.lines))
    _member(file, "errors", report.findings.num_errors)
    _member(file, "warnings", len(report.findings) - report.findings.num_errors)
    _member(file, "counts", dict(_counts(report.findings)))
    if fixed is not None:
        numbers = {"kept": fixed.kept, "changed": fixed.changed, "dropped": fixed.dropped}
        _member(file, "fixed", {"manifest": str(fixed.path), **numbers})
        _array(file, "actions", (_dumped(fixed.actions[number]) for number in range(len(fixed.actions))))
        file.write(",\n")
    _array(file, "findings", _objects(report.findings))
    file.write("\n}\n")


def _objects(findings: Findings) -> Iterator[str]:
    for finding in findings:
        row = {
            "manifest": str(finding.manifest),
            "line": finding.line,
            "name": finding.name,
            "severity": finding.severity,
            "what": finding.what,
            "remedy": finding.remedy,
        }
        yield _dumped(row)


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _member(file: TextIO, name: str, value: object) -> None:
    file.write(f'  "{name}": {_dumped(value)},\n')


def _array(file: TextIO, name: str, items: Iterator[str]) -> None:
    file.write(f'  "{name}": [')
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n    {item}")
    file.write("]")


def write_html(report: Report, fixed: Fixed | None, file: TextIO) -> None:
    """One page that needs nothing else: a table of the numbers, then one for each name, of up to 1000 lines."""
    findings = report.findings
    file.write(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>kvarts data check</title>\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>kvarts data check</h1>\n"
    )
    file.write(f"<p>{escape(summary(report, None).splitlines()[-1])}</p>\n<table>\n")
    for name, count in _counts(findings):
        kind = KINDS[name]
        file.write(
            f'<tr><td><a href="#{name}">{name}</a></td><td class="{kind.severity}">{kind.severity}</td>'
            f'<td class="number">{count}</td><td>{escape(kind.meaning)}</td></tr>\n'
        )
    file.write("</table>\n")
    for name, count in _counts(findings):
        file.write(f'<details open id="{name}"><summary>{name} ({count})</summary>\n<table>\n')
        file.write("<tr><th>line</th><th>what is wrong</th><th>what to do</th></tr>\n")
        for finding in findings.of(name, _MOST_ROWS):
            cells = (escape(finding.what), escape(finding.remedy))
            place = escape(f"{finding.manifest}:{finding.line}")
            file.write(f'<tr><td class="place">{place}</td><td>{cells[0]}</td><td>{cells[1]}</td></tr>\n')
        file.write("</table>\n")
        if count > _MOST_ROWS:
            file.write(f"<p>… and {count - _MOST_ROWS} more, which --format json has</p>\n")
        file.write("</details>\n")
    if fixed is not None:
        file.write(f"<details open><summary>{escape(str(fixed))}</summary>\n<ul>\n")
        for number in range(min(_MOST_ROWS, len(fixed.actions))):
            file.write(f"<li>{escape(fixed.actions[number])}</li>\n")
        file.write("</ul>\n")
        if len(fixed.actions) > _MOST_ROWS:
            file.write(f"<p>… and {len(fixed.actions) - _MOST_ROWS} more, which --format json has</p>\n")
        file.write("</details>\n")
    file.write("</body></html>\n")


def _counts(findings: Findings) -> list[tuple[str, int]]:
    """In the order of `KINDS`."""
    return [(name, findings.counts[name]) for name in KINDS if findings.counts[name]]


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
