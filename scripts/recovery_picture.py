"""Draw one failure of a run and what came of it, as an SVG that follows light and dark: docs/recovery.svg.

    fission-grpo train --config configs/desk_fission.yaml --max_steps 16 --output_dir runs/desk_fission
    python scripts/recovery_picture.py runs/desk_fission docs/recovery.svg

The failure is that whose best recovery makes the most calls without an error, among those of which some recoveries
fail; or `--id`.
"""

import argparse
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

from fission_grpo.core.files import write_file
from fission_grpo.core.terminal import printable
from fission_grpo.report.dialogue import Shown, tell_recovery
from fission_grpo.report.run import RecoveryRecord, read_run

WIDTH, LINE, INDENT = 760, 21, 128  # pixels [ours]
CHARACTERS = 74  # of a line [ours]
STYLE = """
svg { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #0f172a; }
.box { fill: #ffffff; stroke: #e2e8f0; } .who { fill: #475569; font-weight: 600; font-size: 13px; }
.mono { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre; }
.next { font-weight: 650; } .request { font-size: 17px; font-weight: 650; } .bad { fill: #be123c; }
.bar-bad { fill: #e11d48; } .bar-good { fill: #16a34a; } .bar-same { fill: #94a3b8; }
@media (prefers-color-scheme: dark) {
  svg { fill: #e8edf5; } .box { fill: #151e30; stroke: #2a364d; } .who { fill: #a3b1c6; } .bad { fill: #fda4af; }
}
"""


class Drawing:
    """Lines of text from top to bottom."""

    def __init__(self):
        self.y, self.parts = 24, []

    def text(self, text: str, style: str, x: int) -> None:
        self.parts.append(f'<text class="{style}" x="{x}" y="{self.y}">{escape(printable(text))}</text>')

    def message(self, shown: Shown, bar: str) -> None:
        """A message with its role at the left, and a bar in the color of what it belongs to."""
        who = {"user": "User", "assistant": "Policy", "tool": "Tool"}.get(shown.role, shown.role)
        lines = [line for part in (shown.text, *shown.calls) if part for line in textwrap.wrap(part, CHARACTERS)]
        top = self.y + 6
        for number, line in enumerate(lines or ["(empty)"]):
            self.y += LINE
            if not number:
                self.text(who, "who", 40)
            self.text(line, "mono bad" if shown.is_error else "mono", INDENT)
        self.parts.append(f'<rect class="bar-{bar}" x="24" y="{top}" width="3" height="{self.y - top + 6}"/>')

    def heading(self, text: str, style: str = "who") -> None:
        self.y += LINE + 11
        self.text(text, style, 24)

    def svg(self) -> str:
        height = self.y + 24
        size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
            f"<style>{STYLE}</style>"
            f'<rect class="box" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="14"/>'
            + "\n".join(self.parts)
            + "</svg>\n"
        )


def draw(record: RecoveryRecord) -> str:
    """The picture of a corrective instance."""
    story, drawing = tell_recovery(record), Drawing()
    drawing.y += 4
    drawing.text("Request", "who", 24)
    for line in textwrap.wrap(story.request, 60):
        drawing.text(line, "request", INDENT)
        drawing.y += LINE
    drawing.y -= LINE
    drawing.heading("The attempt fails")
    for message in (story.failed, *story.answers):
        drawing.message(message, "bad")
    drawing.heading(f"From here the policy tries {len(record.rewards)} times, and trains on the difference", "next")
    best, worst = story.recoveries[0], story.recoveries[-1]
    for one in (best, worst):
        count = record.rewards.count(one.reward)
        drawing.heading(f"{count} get reward {one.reward:g}" + (", such as" if count > 1 else ""))
        for message in one.dialogue:
            drawing.message(message, "good" if (one.reward or 0) > (record.reward or 0) else "same")
    return drawing.svg()


def interest_of(record: RecoveryRecord) -> tuple[bool, int, int]:
    """What makes a failure worth a picture: the best recovery has no error, several calls, and is not the only one."""
    best = tell_recovery(record).recoveries[0]
    calls = [call for message in best.dialogue for call in message.calls]
    return not any(message.is_error for message in best.dialogue), len(calls), record.rewards.count(best.reward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="output_dir of a run, with fission.jsonl")
    parser.add_argument("output", type=Path, help="the SVG file to write")
    parser.add_argument("--id", help="of a corrective instance in fission.jsonl")
    options = parser.parse_args()
    records = [
        record for record in read_run(options.run_dir).instances if record.rewards and None not in record.rewards
    ]
    if options.id is not None:
        records = [record for record in records if record.id == options.id]
    records = [record for record in records if record.improved and min(record.rewards) <= (record.reward or 0.0)]
    if not records:
        parser.error(f"{options.run_dir}: no failure of which some recoveries are better and some are not")
    write_file(options.output, draw(max(records, key=interest_of)))


if __name__ == "__main__":
    main()
