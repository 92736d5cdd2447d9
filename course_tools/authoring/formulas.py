r"""Formulas: LaTeX as MathML for pages, and as a line of text for terminals.

>>> plain_formula(r"\frac{1}{C_\text{out}} + \frac{1}{k^2}")
'1/C_out + 1/k²'

The text knows what the course writes: Greek letters, fractions, roots, sums, indices and powers, accents, brackets. A
command that it does not know stays as it was typed.
"""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

# --- MathML ------------------------------------------------------------------------------------------------------

# latex2mathml writes "ln" as a variable, which would touch its neighbours; a word in \mathrm letter by letter, which a
# screen reader would spell; and the comma of 25{,}088 as one between two numbers.
FUNCTION = re.compile(r"<mi>([a-z]{2,})</mi>")
UPRIGHT_WORD = re.compile(r'<mrow>((?:<mi mathvariant="normal">\w</mi>){2,})</mrow>')
THOUSANDS = "</mn><mrow><mo>&#x0002C;</mo></mrow><mn>"


def mathml(latex: str, display: bool = False) -> str:
    """Return a formula as a ``<math>`` element, which a browser draws and a screen reader reads.

    A source with a misprint or an unknown command comes back as it is, in a ``<code>`` element.

    Parameters
    ----------
    latex
        Text between the dollar signs.
    display
        True for a formula on a line of its own.
    """
    try:
        page = convert(latex.strip(), display="block" if display else "inline")
    except Exception:  # latex2mathml's errors have no class in common, and a misprint is no reason to lose the page
        page = None
    if page is None or re.search(r"\\[a-zA-Z]", html.unescape(page)):
        return f"<code>{html.escape(latex.strip())}</code>"
    page = FUNCTION.sub(r'<mo lspace="0.167em" rspace="0.167em">\1</mo>', page)
    page = UPRIGHT_WORD.sub(lambda word: f"<mi>{re.sub('<.*?>', '', word[1])}</mi>", page)
    return page.replace(THOUSANDS, ",")


# --- text --------------------------------------------------------------------------------------------------------

SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "Delta": "Δ", "epsilon": "ε", "eta": "η", "theta": "θ",
    "lambda": "λ", "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ", "Sigma": "Σ", "tau": "τ", "varphi": "φ", "phi": "φ",
    "omega": "ω", "ell": "ℓ", "partial": "∂", "nabla": "∇", "infty": "∞", "top": "ᵀ", "sum": "Σ", "prod": "Π",
    "cdot": "·", "times": "×", "pm": "±", "le": "≤", "ge": "≥", "ne": "≠", "approx": "≈", "sim": "~", "propto": "∝",
    "in": "∈", "mid": "∣", "|": "‖", "to": "→", "rightarrow": "→", "leftarrow": "←", "Rightarrow": "⇒", "ldots": "…",
    "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "ln": "ln", "log": "log", "exp": "exp", "min": "min",
    "max": "max", "cos": "cos", "sin": "sin", "left": "", "right": "", ",": " ", ";": " ", " ": " ", "!": "",
    "quad": "   ", "qquad": "   ", "{": "{", "}": "}", "%": "%", "_": "_", "$": "$",
}  # fmt: skip
SPACED = {"≤", "≥", "≠", "≈", "∝", "→", "←", "⇒", "~", "∈", "±", "×", "·", "∣"}
WORDS = ("ln", "log", "exp", "min", "max", "cos", "sin")
ACCENTS = {"hat": "\u0302", "bar": "\u0304", "overline": "\u0305", "tilde": "\u0303"}
FRACTIONS = ("frac", "tfrac", "dfrac")
UPRIGHT = ("text", "mathrm", "operatorname", "mathbf")
RAISED = dict(zip("0123456789+−=()nikmdLTφᵀ", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱᵏᵐᵈᴸᵀᵠᵀ", strict=True))
LOWERED = dict(zip("0123456789+−=()ijklmnprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ᵢⱼₖₗₘₙₚᵣₛₜᵤᵥₓ", strict=True))
TOKEN = re.compile(r"\\(?:[a-zA-Z]+|.)|[{}_^]|\s+|[^\\{}_^\s]", re.DOTALL)


def plain_formula(latex: str) -> str:
    """Return a formula as one line of text, given the LaTeX between its dollar signs."""
    tokens = TOKEN.findall(latex)[::-1]  # the next one is at the end
    text = ""
    while tokens:
        # A closing brace without an opening one is a misprint; the rest is still shown.
        text += _sequence(tokens) + (tokens.pop() if tokens else "")
    return _polished(" ".join(text.split()))


def _polished(text: str) -> str:
    """Return a text with white space as a typesetter would set it."""
    text = re.sub(r"([∂⌊⌈(])\s+", r"\1", text)
    text = re.sub(r"\s+([⌋⌉),.])", r"\1", text)
    return re.sub(r"^([±−])\s+", r"\1", text)


def _sequence(tokens: list[str]) -> str:
    """Return the text of everything up to the end or the next closing brace."""
    text = ""
    while tokens and tokens[-1] != "}":
        fraction = tokens[-1][1:] in FRACTIONS
        piece = _piece(tokens)
        # LaTeX spaces relations by itself; in "ln x" the space belongs to the function.
        if piece in SPACED:
            text = f"{text.rstrip()} {piece} "
            continue
        function = re.search(rf"({'|'.join(WORDS)})$", text.rstrip())
        if fraction and (function or _sticks(tokens)):
            piece = f"({piece})"
        elif (function and piece[:1] not in ("", " ", "(", "_", "^")) or (piece in WORDS and text[-1:].isalnum()):
            piece = f" {piece}"
        text += piece
    return text


def _sticks(tokens: list[str]) -> bool:
    """True if the next symbol would be read as part of the denominator."""
    following = next((token for token in reversed(tokens) if not token.isspace() and token != r"\left"), "}")
    if following.startswith("\\"):
        return following == r"\sqrt" or SYMBOLS.get(following[1:], "=") in set("αβγδΔεηθλμπρσΣτφω")
    return following.isalnum() or following == "("


def _piece(tokens: list[str]) -> str:
    """Return the text of the next symbol, group or command."""
    token = tokens.pop()
    if token == "{":
        text = _sequence(tokens)
        del tokens[-1:]  # the closing brace
        return text
    if token in "_^":
        return _script(token, _argument(tokens))
    if not token.startswith("\\"):
        return " " if token.isspace() else {"-": "−", "*": "∗"}.get(token, token)
    name = token[1:]
    if name in FRACTIONS:
        return f"{_tight(_argument(tokens))}/{_tight(_argument(tokens))}"
    if name == "binom":
        return f"C({_argument(tokens)}, {_argument(tokens)})"
    if name == "sqrt":
        return f"√{_tight(_argument(tokens))}"
    if name in ACCENTS:
        letters = re.findall(r"\S[\u0300-\u036f]*", _argument(tokens))  # each with the accents that it has already
        return "".join(letter + ACCENTS[name] for letter in letters)
    if name in UPRIGHT:
        return _argument(tokens)
    return SYMBOLS.get(name, token)


def _argument(tokens: list[str]) -> str:
    """Return the text that a command or script applies to: a group, or the next symbol."""
    while tokens and tokens[-1].isspace():
        tokens.pop()
    return _piece(tokens).strip() if tokens and tokens[-1] != "}" else ""


def _script(kind: str, text: str) -> str:
    table = RAISED if kind == "^" else LOWERED
    # Words are easier to read as they are: C_out.
    if text and all(letter in table for letter in text) and not (len(text) > 1 and text.isalpha()):
        return "".join(table[letter] for letter in text)
    return f"{kind}{text if text.isalnum() else f'({text})'}"


def _tight(text: str) -> str:
    """Return a text in brackets if it would fall apart beside a bar or under a root."""
    text = _polished(text)
    one = re.fullmatch(r"[^\s+−/·=]+", text) or (text.startswith("(") and text.endswith(")") and text.count("(") == 1)
    return text if one else f"({text})"
