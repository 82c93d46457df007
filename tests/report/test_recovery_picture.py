"""The script that draws docs/recovery.svg."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from report_support import PUSHED, RECOVERED, write_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "recovery_picture.py"


def test_the_picture_shows_the_request_and_two_recoveries_and_escapes_them(tmp_path):
    pushed = PUSHED | {"prompt": [{"role": "user", "content": "Book <it>."}]}
    recovered = RECOVERED | {"rewards": [0.0, 1.0, 1.0, 0.25]}
    run = write_run(tmp_path / "run", fission=[pushed, recovered], evaluations=())
    command = [sys.executable, str(SCRIPT), str(run), str(tmp_path / "out.svg")]
    subprocess.run(command, check=True)
    texts = [part.text for part in ElementTree.parse(tmp_path / "out.svg").iter() if part.tag.endswith("text")]
    assert texts[:2] == ["Request", "Book <it>."]
    assert [text for text in texts if "reward" in text] == ["2 get reward 1, such as", "1 get reward 0"]
    refused = subprocess.run([*command, "--id", "other"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "no failure of which some recoveries are better" in refused.stderr
