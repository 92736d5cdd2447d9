"""A notebook as one HTML page that needs nothing else: no script, font or picture from the network."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

# nbconvert's page loads three scripts from the network. Without them it is one file that works on a plane.
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def page_of(notebook: NotebookNode, folder: Path, title: str) -> str:
    """The HTML text of a page.

    Parameters
    ----------
    notebook
        With outputs.
    folder
        Where pictures that the text refers to are found; they are put into the page.
    title
        Of the page.
    """
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return formula(body)

        def block_math(self, body: str) -> str:
            return f'<div style="text-align: center">{formula(body)}</div>'

    def to_html(markdown: str) -> str:
        renderer = Renderer(escape=False, embed_images=True, path=str(folder), anchor_link_text="¶")
        return MarkdownWithMath(renderer=renderer).render(markdown)

    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"page.html.j2": TEMPLATE})], template_file="page.html.j2", embed_images=True
    )
    exporter.register_filter("markdown2html", to_html)
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return page


def formula(tex: str) -> str:
    """A formula as a picture inside the page, drawn by matplotlib; its TeX source is the alt text.

    What matplotlib's small TeX does not know is shown as its source.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    source, drawn = html.escape(tex.strip()), io.BytesIO()
    known = re.sub(r"\\[bB]igg?[lmr]?(?![A-Za-z])", "", tex.strip())  # matplotlib has brackets of one size only
    try:
        depth = math_to_image(f"${known}$", drawn, prop=FontProperties(size=11), format="svg")
    except ValueError:
        return f"<code>{source}</code>"
    data = base64.b64encode(drawn.getvalue()).decode()
    return f'<img alt="{source}" style="vertical-align: -{depth:.1f}pt" src="data:image/svg+xml;base64,{data}"/>'
