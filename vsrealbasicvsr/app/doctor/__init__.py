"""`rbvsr doctor`: what is installed, what is not, and what to type. Works where any other part is missing.

Nothing but Python's own library is imported at the top: what a check needs, it imports itself.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

from .computing import check_gpu, check_kernels, check_torch, check_weights
from .cures import Check, reason_of, reinstall
from .host import check_bestsource, check_plugin, check_vapoursynth, check_vspipe
from .system import check_disk, check_encoders, check_folders, check_package, check_python


def examine() -> Iterator[Check]:
    """Yield a check for each part, one after another. Never raises: what a check raises is a fault."""
    checks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("Python", check_python),
        ("rbvsr", check_package),
        ("VapourSynth", check_vapoursynth),
        ("plugin core.rbvsr", check_plugin),
        ("vspipe", check_vspipe),
        ("BestSource", check_bestsource),
        ("torch", check_torch),
        ("GPU", check_gpu),
        ("kernels", check_kernels),
        ("default weights", check_weights),
        ("encoders", check_encoders),
        ("folders", check_folders),
        ("disk", check_disk),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Check(name, "fault", reason_of(error), reinstall())


def run_doctor(*, as_json: bool) -> tuple[int, int]:
    """Print a line for each part, or a JSON list of them. Return the numbers of faults and warnings."""
    checks = []
    if as_json:
        checks = list(examine())
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        checks = list(_printed(examine()))
    return sum(check.status == "fault" for check in checks), sum(check.status == "warning" for check in checks)


def _printed(checks: Iterator[Check]) -> Iterator[Check]:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "warning": "yellow", "fault": "bold red"}
    for check in checks:
        line = Text(f"{check.status:<8}", style=styles[check.status])
        line.append(f"{check.name}: {check.found}", style="default")
        console.print(line)
        if check.cure:
            console.print(Text(f"        -> {check.cure}", style="bold"))
        yield check
