"""Makes charts as static drawings, and the script that makes them interactive; both in a separate process. L5.

The chart library starts a JavaScript engine, which ends its process where memory is short (`ulimit -v`, a container's limit). In a
process of its own it cannot end the report's. Without drawings the page still has its tables, and says why the charts are missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import SubprocessError, run
from typing import Any, NamedTuple

LIVE = Path(__file__).parent / "templates" / "report.js"
SECONDS = 600  # for all drawings of a page; those of the largest study take 20
CHILD = (sys.executable, "-P", __file__)  # -P: else `import html` would find the html.py beside this file


class Drawn(NamedTuple):
    """The page's script, an SVG per chart, and `fault`: why there are no charts, or "". With a fault the script lacks the chart library."""

    script: str
    drawings: Mapping[str, str]
    fault: str = ""


def drawn(specs: Mapping[str, Any]) -> Drawn:
    """Draws each Vega-Lite specification (by name). Errors: none; a failure, or a chart without any text in it, is reported in `fault`."""
    live = LIVE.read_text(encoding="utf-8")
    asked = json.dumps({"live": live, "specs": specs})
    try:
        child = run([*CHILD], input=asked, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=False)
        made = json.loads(child.stdout) if child.returncode == 0 else None
    except (OSError, ValueError, SubprocessError) as error:
        return Drawn(live, {}, f"the charts could not be drawn ({type(error).__name__})")
    if made is None:
        last = child.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return Drawn(live, {}, f"the charts could not be drawn: their process ended with status {child.returncode} ({last[0][:200]})")
    blank = [name for name, svg in made["drawings"].items() if "<text" not in svg]
    if blank:
        return Drawn(live, {}, f"the charts could not be drawn: {', '.join(blank)} came out blank")
    script = made["script"].replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return Drawn(script, made["drawings"])


def converted(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Bundles the page's script (`live`) with the chart library, and draws an SVG per spec (`specs`). Runs in the separate process."""
    import vl_convert  # noqa: PLC0415  the child's alone

    drawings = {name: vl_convert.vegalite_to_svg(spec) for name, spec in asked["specs"].items()}
    return {"script": vl_convert.javascript_bundle(asked["live"]), "drawings": drawings}


if __name__ == "__main__":
    json.dump(converted(json.load(sys.stdin)), sys.stdout)
