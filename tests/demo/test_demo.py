"""The demo from first to last, as a user runs it, with few steps of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from opened_page import check_page, chromium

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "demo", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_demo_ends_with_a_page(tmp_path: Path) -> None:
    done = run(tmp_path, "--quick")
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.split("== Right or wrong\n")[1].splitlines()
    assert told[-1] == "demo-output/index.html"
    assert max(map(len, told)) <= 80
    verdicts = [
        line.split(":")[0].strip() for line in told if line.startswith("  ") and ":" in line
    ]
    assert len(verdicts) == 4
    assert any(line.startswith("Of all 200 captions") for line in told)
    page = tmp_path / "demo-output" / "index.html"
    content = page.read_text(encoding="utf-8")
    badges = content.count('class="badge good">right'), content.count('class="badge bad">wrong')
    assert badges == (verdicts.count("right"), verdicts.count("wrong"))
    assert "sure" in content.split("</h2>")[1]
    assert '<b class="badge good">passed</b>' in content
    with chromium() as browser:
        opened = check_page(browser, page, width=360, scheme="dark")
        opened.get_by_text("Open the certificate").click()
        opened.wait_for_url("**/xclip-bundle/verification/report.html")
        assert opened.title() == "xclip-deploy verify: passed"


def test_an_earlier_demo_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out put" / "run").mkdir(parents=True)
    done = run(tmp_path, "--output", "out put")
    assert done.returncode == 1
    assert done.stderr.strip() == ("out put/run is left from an earlier demo; run: rm -r 'out put'")
    assert not (tmp_path / "out put" / "index.html").exists()
