"""The pages of the documentation's site that lie outside of docs/, for mkdocs: README is the first of them.

Links are written as they work in the repository; here they are turned to where the site has the page.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

SOURCES = {
    "index.md": "README.md",
    "model-card.md": "vsrealbasicvsr/weights/MODEL_CARD.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "pictures/before_after.png": "scripts/pictures/before_after.png",
}
"""Where a file lies on the site, and where in the repository; docs/ lies at the site's root."""

PUBLIC_NAMES = (
    "weights.load_model",
    "model.refine",
    "model.RealBasicVSR",
    "model.Architecture",
    "weights.write_weights",
    "errors.UserError",
)
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
API_INTRODUCTION = """# Python library

Axes: `N` clips, `T` frames, `C` channels, `H W` pixels of the low-resolution frame, `S = 4` scale. RGB is
gamma-encoded, in [0, 1]. `core.rbvsr.Upscale` and its arguments: [the first page](index.md#arguments).
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages; mkdocs calls it."""
    for place, source in SOURCES.items():
        if place.endswith(".md"):
            files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    directives = "\n".join(f"\n::: vsrealbasicvsr.{name}" for name in PUBLIC_NAMES)
    files.append(File.generated(config, "api.md", content=API_INTRODUCTION + directives + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn a page's links to where the site has what they name; mkdocs calls it."""
    return with_site_links(markdown, page.file.src_uri)


def with_site_links(markdown: str, place: str) -> str:
    """Turn the relative links of the page at `place` of the site, which are written for the repository."""
    if place == "api.md":
        return markdown
    repository = posixpath.dirname(SOURCES.get(place, f"docs/{place}"))
    on_site = {source: place for place, source in SOURCES.items()}

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(repository, link[2]))
        there = on_site.get(target, target.removeprefix("docs/"))
        return link[1] + posixpath.relpath(there, posixpath.dirname(place) or ".") + link[3]

    return LINK.sub(turned, markdown)
