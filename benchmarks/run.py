"""`make bench`: run the measures, write build/bench/results.json and, on a full run, docs/benchmarks.md."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import canned, host, live, programs, report, tls
from benchmarks.report import Section
from benchmarks.trial import Setting, say

DOCUMENT = programs.ROOT / "docs" / "benchmarks.md"

Measure = Callable[[Setting, live.Plan], Section | list[Section]]

MEASURES: dict[str, Measure] = {
    "fixed": live.fixed_rate,
    "go": live.saturation_go,
    "nothing": live.nothing_to_copy,
    "nginx": live.saturation_nginx,
    "close": live.connection_per_request,
    "large": live.large_bodies,
    "life": live.life,
    "idle": live.idle_connections,
    "kernel": live.kernel_side,
    "tls-fixed": tls.fixed_rate,
    "tls-go": tls.saturation_go,
    "tls-nginx": tls.saturation_nginx,
    "tls-attach": tls.attaching,
}
QUICK = tuple(name for name in MEASURES if name != "kernel")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of each: under two minutes, for a look")
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join(['pipeline', *MEASURES, 'compare'])}")
    parser.add_argument("--compare", action="store_true", help="tcpdump and strace too, in the same run")
    parser.add_argument("--rounds", type=int, help="instead of the plan's")
    parser.add_argument("--agent", default=str(programs.ROOT / ".venv" / "bin" / "netprofiler"), help="the program")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md even if it was no full run")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md alone")
    parser.add_argument("--profile", action="store_true", help="print the whole profile of each canned case")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _on_term)
    plan = live.QUICK if arguments.quick else live.FULL
    if arguments.rounds:
        plan = dataclasses.replace(plan, rounds=arguments.rounds, fixed_rounds=arguments.rounds)
    wanted = arguments.only.split(",") if arguments.only else ["pipeline", *(QUICK if arguments.quick else MEASURES)]
    if arguments.compare and "compare" not in wanted:
        wanted.append("compare")
    unknown = set(wanted) - {"pipeline", "compare", *MEASURES}
    if unknown:
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0 and wanted != ["pipeline"]:
        print("bench: all but --only pipeline needs root", file=sys.stderr)
        return 1
    return run(arguments, wanted, plan)


def _on_term(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run(arguments: argparse.Namespace, wanted: list[str], plan: live.Plan) -> int:
    programs.BUILD.mkdir(parents=True, exist_ok=True)
    if wanted != ["pipeline"]:
        programs.build()
    setting = live.make_setting(arguments.agent)
    begin = time.monotonic()
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    remarks = [f"Load average before: {', '.join(f'{value:.2f}' for value in os.getloadavg())}."]
    other_agents = host.other_agents(None)
    if other_agents:
        remarks.append(f"**Disturbed**: {other_agents} other netprofiler(s) ran when this began.")
    measures: dict[str, Measure] = {
        "pipeline": lambda _setting, _plan: canned.section(quick=arguments.quick),
        **MEASURES,
        "compare": live.compare,
    }
    sections: list[Section] = []
    failed = False
    for name in wanted:
        say(f"{name} …")
        try:
            made = measures[name](setting, plan)
        except (programs.ProgramError, OSError, subprocess.SubprocessError) as error:
            failed = True
            made = Section(name, f"**Failed**: {error}")
            say(f"  FAILED: {error}")
        sections += made if isinstance(made, list) else [made]
        if arguments.profile and name == "pipeline":
            show_profiles(sections[-1])
    remarks.append(
        f"{'Quick' if arguments.quick else 'Full'} run of {', '.join(wanted)}: {time.monotonic() - begin:.0f} s."
    )
    facts = host.facts()
    text = report.markdown(when, facts, remarks, sections)
    print(text)
    report.write_json(programs.BUILD / "results.json", when, facts, remarks, sections)
    (programs.BUILD / "results.md").write_text(text + "\n", encoding="utf-8")
    full = not arguments.quick and not arguments.only
    if (full or arguments.write) and not arguments.no_write:
        report.write_document(DOCUMENT, text)
        say(f"written: {DOCUMENT}")
    return 1 if failed else 0


def show_profiles(section: Section) -> None:
    for case in section.data:
        say(f"{case['case']}: own µs a message under cProfile")
        for name, calls, own in case["profile"]:
            say(f"  {own:7.3f}  {calls:6.2f} calls  {name}")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
