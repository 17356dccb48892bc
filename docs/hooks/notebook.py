"""Notebooks as pages of the site, with their saved outputs; `test_notebooks.py` runs them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs hook: adds a page with the same name for each `.ipynb`, and its images."""
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        at = PurePosixPath(file.src_uri)
        text, pictures = page(json.loads(file.content_string), at.stem)
        files.append(File.generated(config, str(at.with_suffix(".md")), content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, str(at.parent / name), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """MkDocs hook: links to a notebook, which GitHub shows as it is, become links to its page."""
    own = page.file.src_uri.startswith("notebooks/")
    return markdown if own else re.sub(r"\]\(([\w/.-]+)\.ipynb\)", r"](\1.md)", markdown)


def page(notebook: Mapping[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its images by file name."""
    pictures: dict[str, bytes] = {}
    lines = [f"[Download this notebook]({stem}.ipynb)", ""]
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            lines += [text, ""]
        elif cell["cell_type"] == "code" and text:
            lines += ["```python", text, "```", ""]
            for output in cell["outputs"]:
                lines += [*_shown(output, stem, pictures), ""]
    # The title comes first, with the link below it.
    title = next((k for k, line in enumerate(lines) if line.startswith("# ")), None)
    if title is not None:
        first, *rest = lines[title].split("\n", 1)
        lines = [first, "", lines[0], "", *rest, *lines[title + 1 :]]
    return "\n".join(lines) + "\n", pictures


def _shown(output: Mapping[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    if output["output_type"] == "stream":
        yield from ("```text", "".join(output["text"]).rstrip(), "```")
        return
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        yield f"![{''.join(data.get('text/plain', 'A plot'))}]({name})"
    elif "text/html" in data:
        yield re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
    elif "text/plain" in data:
        yield from ("```text", "".join(data["text/plain"]), "```")
