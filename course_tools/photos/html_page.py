"""HTML pages from the templates in ``templates/``: each is one file that needs no other file and no connection.

The templates escape every value, so a name such as ``<b>`` is shown as it is written.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import jinja2
from PIL import Image

from course_utils.common.tables import percent


def render_page(template: str, **values: Any) -> str:
    """Return the text of a page from a file in ``templates/``; a name in it without a value is an error."""
    return _TEMPLATES.get_template(template).render(values)


def data_uri(picture: Image.Image) -> str:
    """Return a picture as an address that holds all of it, as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88)
    return as_data_uri(buffer.getvalue(), "jpeg")


def as_data_uri(content: bytes, kind: str) -> str:
    """Return the bytes of a picture file as an address that holds all of them; `kind` is ``"jpeg"`` or ``"png"``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("course_tools.photos"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"data_uri": data_uri, "percent": percent}
