"""A notebook as one HTML page that needs nothing else: no script, font or picture from the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from course_tools.authoring.formulas import mathml

# nbconvert's page loads three scripts from the network. Without them it is one file that works on a plane.
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def page_of(notebook: NotebookNode, folder: Path, title: str) -> str:
    """Return a notebook as an HTML text; the pictures of `folder` that it refers to are put into the page."""
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"page.html.j2": TEMPLATE})], template_file="page.html.j2", embed_images=True
    )
    exporter.register_filter("markdown2html", lambda markdown: markdown_to_html(markdown, folder=folder))
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return page


def markdown_to_html(markdown: str, formula: Callable[[str, bool], str] = mathml, folder: Path | None = None) -> str:
    """Return Markdown as HTML, as nbconvert writes it, but with formulas that need no script.

    Parameters
    ----------
    formula
        Function that writes a formula, given its LaTeX and True if it stands on a line of its own.
    folder
        Folder of the pictures to put into the page; None leaves links to pictures as they are.
    """
    renderer = _Renderer(formula, escape=False, embed_images=folder is not None, path=str(folder or ""))
    return MarkdownWithMath(renderer=renderer).render(markdown)


class _Renderer(IPythonRenderer):
    """nbconvert's renderer with another way to write formulas."""

    def __init__(self, formula: Callable[[str, bool], str], **options: object) -> None:
        super().__init__(**options)
        self.formula = formula

    def inline_math(self, body: str) -> str:
        return self.formula(body, False)

    def block_math(self, body: str) -> str:
        return self.formula(body, True)

    def latex_environment(self, name: str, body: str) -> str:
        return self.formula(rf"\begin{{{name}}}{body}\end{{{name}}}", True)
