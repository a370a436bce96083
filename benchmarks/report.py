"""Results as Markdown between the markers of docs/benchmarks.md, and as JSON. Numbers get there by no other way."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEGIN = "<!-- results: begin (written by benchmarks/run.py; do not edit) -->"
END = "<!-- results: end -->"


@dataclass(slots=True)
class Section:
    title: str
    intro: str
    header: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was seen besides: noise, failures, who else was busy."""
    data: Any = None
    """For the JSON file."""

    def markdown(self) -> str:
        out = [f"### {self.title}", "", self.intro]
        if self.rows:
            out += ["", _line(self.header), _line(("---",) + ("---:",) * (len(self.header) - 1))]
            out += [_line(row) for row in self.rows]
        if self.notes:
            out += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(out)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(when: str, facts: dict[str, str], remarks: list[str], sections: list[Section]) -> str:
    out = [f"Run of {when}.", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    if remarks:
        out += ["", *(f"- {remark}" for remark in remarks)]
    for section in sections:
        out += ["", section.markdown()]
    return "\n".join(out)


def write_document(path: Path, text: str) -> None:
    """Put the text between the markers; what stands around them stays."""
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no markers for the results")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def write_json(path: Path, when: str, facts: dict[str, str], remarks: list[str], sections: list[Section]) -> None:
    content = {
        "when": when,
        "facts": facts,
        "remarks": remarks,
        "sections": {section.title: {"notes": section.notes, "data": section.data} for section in sections},
    }
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
