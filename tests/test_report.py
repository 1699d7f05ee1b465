"""The report page: everything a manifest says on one page that needs nothing else and that no manifest can abuse."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import First, Project, command

from compiler import sentences
from compiler.errors import IntegrityError
from compiler.html import render
from compiler.observations import append
from compiler.runtime.verify import read_manifest

SHOWN_TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "span", "div", "section", "table",
    "tr", "th", "td", "dl", "dt", "dd", "pre", "figure", "figcaption", "svg", "g", "line", "circle", "text",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "colspan", "viewbox", "role", "aria-label", "x", "y",
    "dx", "dy", "x1", "x2", "y1", "y2", "cx", "cy", "r", "text-anchor",
}  # fmt: skip
OPEN_ENDED = {"meta"}
ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\x1b[31m\u202e"


class Page(HTMLParser):
    """The page's elements, their text, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.csp = ""
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.attributes |= given.keys()
        if given.get("http-equiv") == "Content-Security-Policy":
            self.csp = given["content"] or ""
        if tag not in OPEN_ENDED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        """All text, white space made one."""
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def manifest(first: First) -> dict[str, Any]:
    return copy.deepcopy(first.manifest)


def _hostile(value: Any) -> Any:
    """Every text of the manifest with an attack in it; the words that choose something stay."""
    kept = {"selected", "rejected", "failed", "skipped", "eligible", "pass", "fail", "unproven", "provisional", "top1"}
    if isinstance(value, dict):
        return {
            name: item if name in ("id", "selected", "baseline", "split", "metric") else _hostile(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_hostile(item) for item in value]
    return value + ATTACK if isinstance(value, str) and value not in kept else value


def test_the_page_is_well_formed_and_needs_nothing_from_outside(manifest: dict[str, Any]) -> None:
    page = Page(render(manifest))
    assert not page.open and page.tags <= SHOWN_TAGS and page.attributes <= ATTRIBUTES
    assert "default-src 'none'" in page.csp and "unsafe-inline" not in page.csp
    assert "@import" not in page.words and "url(" not in page.words


def test_the_style_is_the_one_that_the_policy_allows(manifest: dict[str, Any]) -> None:
    import base64
    import hashlib

    text = render(manifest)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in text


def test_the_page_tells_what_the_manifest_tells(manifest: dict[str, Any]) -> None:
    words = Page(render(manifest)).words
    assert words.index("Verdicts") < words.index("Candidates") < words.index("Steps") < words.index("Files")
    for row in manifest["candidates"]:
        assert row["id"] in words and row["reason"] in words
        if row["latency_ms"]:
            assert all(cell in words for cell in sentences.cells(row, manifest)[1:5])
    for file in manifest["files"]:
        assert file["path"] in words and file["sha256"] in words
    for step in manifest["steps"]:
        assert step["name"] in words and step["why"] in words
    for name, split in manifest["data"]["splits"].items():
        assert name in words and split["digest"] in words
    for name, version in manifest["environment"]["packages"].items():
        assert f"{name} {version}" in words
    assert manifest["digest"] in words and manifest["measured_on"][0]["fingerprint"] in words


def test_candidates_are_in_the_order_of_show_and_the_chart_has_a_mark_for_each_measured_one(
    manifest: dict[str, Any],
) -> None:
    text = render(manifest)
    table = Page(text.partition("<h2>Candidates</h2>")[2].partition("</table>")[0]).words
    speeds = {row["id"]: row["speedup"] or 0 for row in manifest["candidates"]}
    places = [table.index(f" {name} ") for name in sorted(speeds, key=lambda name: (-speeds[name], name))]
    assert places == sorted(places)
    chart = text.partition("<figure>")[2].partition("</figure>")[0]
    assert chart.count("<circle") == sum(row["latency_ms"] is not None for row in manifest["candidates"]) > 1


def test_equal_manifests_give_equal_bytes_in_another_process_too(manifest: dict[str, Any], tmp_path: Path) -> None:
    import subprocess
    import sys

    from conftest import environment

    (tmp_path / "m.json").write_text(json.dumps(manifest))
    script = "import json,sys; from compiler.html import render; sys.stdout.write(render(json.load(open(sys.argv[1]))))"
    other = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "m.json"], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**environment(), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert other.stdout == render(manifest)


def test_no_text_of_a_manifest_becomes_an_element_an_attribute_or_a_template(manifest: dict[str, Any]) -> None:
    attacked = _hostile(manifest)
    for row in attacked["candidates"]:
        row["id"] += ATTACK
    attacked["selected"] += ATTACK
    attacked["baseline"] += ATTACK
    text = render(attacked)
    page = Page(text)
    assert not page.open and page.tags <= SHOWN_TAGS and page.attributes <= ATTRIBUTES
    assert text.count("&lt;script&gt;") > 50 and "{{ 7*7 }}" in page.words
    assert "\x1b" not in text and "\u202e" not in text


def test_a_status_cannot_be_invented(manifest: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        render(manifest | {"status": "pass, really"})


def test_a_failed_budget_is_the_first_thing_that_is_said(manifest: dict[str, Any]) -> None:
    manifest["status"] = "budget_failed"
    manifest["verdicts"].append(
        {"metric": "size_mb", "bound": 0.001, "value": 0.5, "result": "fail", "reason": "too large"}
    )
    words = Page(render(manifest)).words
    assert words.index("The budget is not met: size_mb (too large)") < words.index("Verdicts")


def test_figures_of_a_proxy_are_called_so_before_any_of_them(manifest: dict[str, Any]) -> None:
    host = manifest["measured_on"][0] | {"kind": "proxy", "is_target": False}
    words = Page(render(manifest | {"measured_on": [host]})).words
    assert words.index("Latency is a proxy: measured on") < words.index("Verdicts")
    assert "p50 ms (proxy)" in words and "p50 ms, measured on a proxy" in words
    host |= {"kind": "native", "is_target": True}
    assert "proxy" not in Page(render(manifest | {"measured_on": [host], "verdicts": []})).words


def test_nothing_selected_and_nothing_measured_is_a_page_too(manifest: dict[str, Any]) -> None:
    manifest["selected"] = None
    for row in manifest["candidates"]:
        row |= {"latency_ms": None, "speedup": None, "accuracy": None, "fidelity": None, "status": "failed"}
    text = render(manifest)
    assert "Selected: none" in text and "<figure>" not in text


@pytest.mark.parametrize("broken", [
    {"p50": 1e400}, {"p50": 1e300}, {"p50": float("nan")}, {"p50": "0.1"}, {"ci95": [0.1]}, {"ci95": None}, {"p95": {}},
    {"p50": True}, {"p50": 10**400},
])  # fmt: skip
def test_a_figure_that_is_none_is_an_integrity_error(manifest: dict[str, Any], broken: dict[str, Any]) -> None:
    row = next(row for row in manifest["candidates"] if row["latency_ms"])
    row["latency_ms"] |= broken
    with pytest.raises(IntegrityError, match="cannot be reported on"):
        render(manifest)


@pytest.mark.parametrize("p50", [0.0, -3.0, 1e-12, 1e14])
def test_charts_hold_any_figure(manifest: dict[str, Any], p50: float) -> None:
    row = next(row for row in manifest["candidates"] if row["latency_ms"])
    row["latency_ms"] |= {"p50": p50, "ci95": [p50, p50]}
    text = render(manifest)
    assert "nan" not in text.partition("<figure>")[2].partition("</figure>")[0]


def test_report_writes_beside_the_version_and_leaves_it_alone(built: Project) -> None:
    folder = next((built.artifacts / "nullmodel" / "nulltarget").glob("2*"))
    done = command("report", folder.parent / "latest")
    assert done.code == 0, done.err
    file = folder.parent / ".observations" / folder.name / "report.html"
    assert done.out.splitlines()[-1] == str(file) and "nullmodel for nulltarget" in file.read_text()
    assert command("verify", folder).code == 0
    first = file.read_bytes()
    assert command("report", folder).code == 0 and file.read_bytes() == first


def test_later_measurements_are_on_the_page(built: Project) -> None:
    folder = next((built.artifacts / "nullmodel" / "nulltarget").glob("2*"))
    _, manifest = read_manifest(folder)
    append(folder, manifest, folder)  # what the build itself measured, taken for a measurement from elsewhere
    assert command("report", folder).code == 0
    page = Page((folder.parent / ".observations" / folder.name / "report.html").read_text())
    assert "Measured again" in page.words and f"speed-ups against {manifest['baseline']}" in page.words
    record = json.loads(next((folder.parent / ".observations" / folder.name).glob("*/observation.json")).read_text())
    record["host"]["fingerprint"] = "0" * 16
    record["candidates"][manifest["selected"]]["latency_ms"] |= {"stable": False, "unstable_reasons": [ATTACK]}
    words = Page(render(manifest, [record])).words
    assert "The manifest's figures were taken on another host" in words and "Unstable: " in words
    del record["host"]["cpu_model"]
    with pytest.raises(IntegrityError):
        render(manifest, [record])


def test_report_of_a_folder_that_is_in_no_artifacts_folder_wants_a_place(built: Project, tmp_path: Path) -> None:
    folder = next((built.artifacts / "nullmodel" / "nulltarget").glob("2*"))
    moved = folder.rename(tmp_path / "pulled")
    done = command("report", moved)
    assert done.code == 2 and "--output" in done.last_lines()[0]
    inside = command("report", moved, "--output", moved / "report.html")
    assert inside.code == 2 and "is inside the artifact" in inside.err and not (moved / "report.html").exists()
    assert command("report", moved, "--output", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_report_of_a_broken_manifest_is_an_integrity_error(built: Project, tmp_path: Path) -> None:
    file = next((built.artifacts / "nullmodel" / "nulltarget").glob("2*/manifest.json"))
    manifest = json.loads(file.read_text())
    manifest["candidates"][0]["latency_ms"] = {"p50": []}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text(json.dumps(manifest))
    done = command("report", tmp_path / "broken", "--output", tmp_path / "page.html")
    assert done.code == 6 and not (tmp_path / "page.html").exists() and "Traceback" not in done.err
