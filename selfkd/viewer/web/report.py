"""One run as a single HTML file: the page's figures and a few samples, without a server."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from selfkd.errors import UsageError
from selfkd.files import disk_error, write_atomically
from selfkd.rundir import APART
from selfkd.viewer.browse import Wanted, browse
from selfkd.viewer.shapes import round_shapes
from selfkd.viewer.web.app import FIGURES, HERE, TEMPLATES, finite
from selfkd.viewer.web.folder import run_document

SCRIPTS = ("theme", "vendor/d3.min", "vendor/plot.min", "dom", *FIGURES, "sample", "report")
LICENCES = ("vendor/d3.LICENSE.txt", "vendor/plot.LICENSE.txt")


def write_report(run_dir: Path, out: Path, *, samples: int = 8) -> int:
    """Write a run's report; returns its size in bytes.

    `samples` of each round are in it, kept and dropped by halves. Raises UsageError where `out`
    cannot be a report's name, InfrastructureError where it cannot be written.
    """
    if out.suffix not in (".html", ".htm"):
        raise UsageError("a report is a .html file", where=f"-o {out}", remedy="name a .html file")
    data = render_report(run_dir, samples=samples).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    write_atomically(out, data)
    return len(data)


def render_report(run_dir: Path, *, samples: int = 8) -> str:
    """The report as HTML; nothing in it is loaded from elsewhere, and only its own scripts run."""
    static = HERE / "static"
    scripts = [(static / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    style = (static / "style.css").read_text(encoding="utf-8")
    run = run_document(run_dir)
    data = {
        "run": {**run, "path": run["run"], "current": None},
        "shapes": round_shapes(run_dir),
        "samples": _samples(run_dir, run["labels"], samples),
    }
    hashes = " ".join(f"'{_source_hash(s)}'" for s in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src '{_source_hash(style)}'"
    # All but the title and the licences goes in as it is: our own files, and escaped JSON.
    return TEMPLATES.get_template("report.html").render(
        title=run["run"],
        policy=f"{policy}; img-src data:",
        scripts=scripts,
        style=style,
        licences=[(static / name).read_text(encoding="utf-8") for name in LICENCES],
        data=embedded(finite(data)),
    )


def embedded(value: Any) -> str:
    """JSON that can stand in a script element, whatever text it holds."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _source_hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _samples(run_dir: Path, labels: dict[int, list[str]], count: int) -> list[dict[str, Any]]:
    """Up to `count` own samples of each round, half of them kept where there are decisions."""
    groups = []
    for number, there in labels.items():
        own = [label for label in there if label not in APART]
        if not own or not count:
            continue
        kept = browse(run_dir, number, Wanted(own[0], kept=True), limit=count // 2)["rows"]
        dropped = browse(run_dir, number, Wanted(own[0], kept=False), limit=count - len(kept))
        rows = [*kept, *dropped["rows"]]
        rows = rows or browse(run_dir, number, Wanted(own[0]), limit=count)["rows"]
        groups.append({"round": number, "label": own[0], "samples": rows})
    return groups
