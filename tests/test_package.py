"""What is built from a checkout holds what bridge needs to run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_templates_assets_and_examples(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--disable-pip-version-check", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "templates").rglob("*") if path.is_file()}
    assert {f"bridge/{name}" for name in templates} <= names
    assert {"bridge/bridge.example.toml", "bridge/demo/bridge.toml", "bridge/cli/__init__.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "docs/"))]


def test_what_is_not_ours_is_named_with_version_and_licence() -> None:
    assets = ROOT / "templates" / "assets"
    told = (assets / "VENDORED.md").read_text()
    ours = {"bridge.css", "bridge.js", "icon.svg", "VENDORED.md"}
    for path in assets.iterdir():
        if path.name in ours or path.name.startswith("LICENSE."):
            continue
        (row,) = [line for line in told.splitlines() if line.startswith(f"| {path.name} |")]
        version = row.split("|")[3].strip()
        assert version in path.read_text(encoding="utf-8") or path.name == "htmx.min.js"
    assert 'version:"2.0.11"' in (assets / "htmx.min.js").read_text(encoding="utf-8")
