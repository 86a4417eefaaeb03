"""Links between the documents, and what they promise of themselves."""

import re
from pathlib import Path

import pytest

from tests import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "vsrealbasicvsr/weights/MODEL_CARD.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(document: Path) -> str:
    """Without code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(document: Path) -> set[str]:
    """The names of the headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_its_heading(document):
    for link in LINK.findall(text_of(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 140


def test_the_pages_of_the_site_are_documents_that_are_there():
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    from scripts.site_pages import SOURCES, with_site_links

    assert all((ROOT / source).is_file() for source in SOURCES.values())
    links = "[a](docs/training.md) [b](vsrealbasicvsr/weights/MODEL_CARD.md#data) [c](https://example.org) [d](#limits)"
    assert with_site_links(links, "index.md") == (
        "[a](training.md) [b](model-card.md#data) [c](https://example.org) [d](#limits)"
    )
    assert with_site_links("[e](../../README.md)", "upstream/x.md") == "[e](../index.md)"
