"""The day pages: every link leads somewhere, nothing of the brief is lost, numbers and pictures are those measured."""

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from helpers import mini, on_meta
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from course_tools.authoring import blog, pages
from course_tools.authoring.blog import FIGURES, NUMBERS, Printed
from course_tools.authoring.formulas import mathml
from course_tools.authoring.notebook_checks import count_words
from course_tools.authoring.notebooks import read_notebook, write_notebook
from course_utils.common.errors import CourseError

ROOT = Path(__file__).parents[2]
BRIEF = ROOT.parent / "shared" / "brief"
DAYS = ("day20", "day21", "day22")
PAGES = [*blog.pages_of(ROOT), *ROOT.glob("*.md"), *ROOT.glob("results/*.md")]
HAND_WRITTEN = {page.relative_to(ROOT).as_posix(): page for page in PAGES}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)\)")

# What this page of the brief says is dated, or said here with the reason for the change.
OLD, NEW = "models.resnet18(pretrained=True)", 'models.resnet18(weights="DEFAULT")'
FUNCTIONS = "Functions: {}, freezing layers: param.requires_grad = False, modifying classifier head"
LOADING = "Loading pre-trained model: model = torchvision.models.resnet18({})"
CHANGED = {
    FUNCTIONS.format(OLD): FUNCTIONS.format(NEW),
    LOADING.format("pretrained=True") + " or weights='IMAGENET1K_V1'": (
        LOADING.format("weights='IMAGENET1K_V1'") + ", formerly pretrained=True"
    ),
}


def prose(text):
    """A page without code blocks and code spans, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def plain(text):
    """Words without markup, link targets and line breaks."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return " ".join(LINK.sub(r"\2", text).replace("*", "").replace("`", "").split())


def headings(path):
    if path.suffix == ".ipynb":
        sources = [cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown"]
        return {h.strip().replace(" ", "-") for s in sources for h in re.findall(r"^#+ (.*)$", s, re.MULTILINE)}
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", LINK.sub(r"\2", heading).lower()).strip().replace(" ", "-") for heading in found}


def missing_only_with_day22(path):
    """Whether a target may be missing: day 22's notebook, and its pictures as long as it is not rendered."""
    return (
        not blog.outputs_of(ROOT / "notebooks" / "day22.ipynb")
        and path.name.startswith("day22")
        and path.suffix in (".ipynb", ".png")
    )


@pytest.mark.parametrize("name", sorted(HAND_WRITTEN))
def test_every_link_leads_somewhere(name):
    page = HAND_WRITTEN[name]
    for _, text, target in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://[\w.-]+\.[a-z]+", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file) if file else page
        if missing_only_with_day22(path):
            continue
        assert path.exists(), f"[{text}]({target}): no such file"
        assert not anchor or anchor in headings(path), f"[{text}]({target}): no such heading"


@pytest.mark.parametrize("name", sorted(HAND_WRITTEN))
def test_every_picture_is_described_and_local(name):
    for image, alt, target in LINK.findall(HAND_WRITTEN[name].read_text(encoding="utf-8")):
        if image:
            assert len(alt.split()) >= 8, f"{target}: say what the picture shows"
            assert "://" not in target


@pytest.mark.parametrize("day", ["day20", "day21"])
def test_nothing_of_the_brief_is_lost(day):
    brief = BRIEF / f"{day}.md"
    if not brief.exists():
        pytest.skip("the brief lies beside the checkout, and is not there")
    page = plain((ROOT / "notebooks" / f"{day}.md").read_text(encoding="utf-8"))
    for line in brief.read_text(encoding="utf-8").splitlines():
        said = plain(line.lstrip("#- "))
        said = CHANGED.get(said, said)
        assert said in page, f"{day}.md does not say: {said}"


@pytest.mark.parametrize("day", DAYS)
def test_a_day_page_has_the_form_of_the_brief_and_no_empty_place(day):
    text = (ROOT / "notebooks" / f"{day}.md").read_text(encoding="utf-8")
    parts = ["## **To Do**", "**Level 1", "**Level 2", "**Level 3", "## **Plan**", "**Objectives:**", "**Deep Learning"]
    parts += ["**Tools Used:**", "**Key Learnings:**", "**References:**", "## Papers"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    for label in re.finditer(r"^- \*\*[\w ]+:\*\*$", text, re.MULTILINE):
        assert text[label.end() :].startswith("\n  - "), f"{label[0]} is empty"
    assert f"({day}.ipynb)" in text and f"(blog/{day}.md)" in text and "(media/" in text


@pytest.mark.parametrize("day", DAYS)
def test_a_blog_is_a_five_minute_story_without_code(day):
    text = (ROOT / "notebooks" / "blog" / f"{day}.md").read_text(encoding="utf-8")
    assert 700 <= count_words(text) <= 1000
    assert "```" not in text and "## What to ask the team" in text
    assert all(f"**{scenario}**" in text for scenario in "ABC")


@pytest.mark.parametrize("day", DAYS)
def test_the_papers_are_summarised_in_a_paragraph_each(day):
    papers = (ROOT / "notebooks" / f"{day}.md").read_text(encoding="utf-8").partition("## Papers\n\n")[2]
    paragraphs = papers.strip().split("\n\n")
    assert len(paragraphs) >= 4
    for paragraph in paragraphs:
        assert re.match(r"\*\*.*\(\d{4}\), \[", paragraph) and "https://arxiv.org/abs/" in paragraph
        assert 50 <= len(plain(paragraph).split()) <= 130


def test_the_minutes_of_the_syllabus_add_up():
    levels = re.split(r"^## Level", (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    totals = []
    for level in levels:
        minutes = [int(m) for m in re.findall(r"\| (\d+) \|$", level, re.MULTILINE)]
        total = int(re.search(r"\*\*together\*\* \| \*\*(\d+)\*\*", level)[1])
        assert sum(minutes) == total
        totals.append(total)
    assert len(totals) == 3 and totals[1] in [int(m) for m in re.findall(r"Level 2 \| (\d+)", levels[2])]


# --- code on the pages -------------------------------------------------------------------------------------------


def code_of(day):
    text = (ROOT / "notebooks" / f"{day}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_recipe_of_day_20_freezes_all_but_the_head_then_lets_a_stage_learn(monkeypatch, capsys):
    monkeypatch.setattr("torchvision.models.resnet18", lambda weights: on_meta("resnet18"))
    recipe, fine_tuning, keras = code_of("day20")
    names = {}
    exec(recipe, names)
    assert capsys.readouterr().out == "['fc.weight', 'fc.bias']\n"
    exec(fine_tuning, names)
    learning = {n.partition(".")[0] for n, p in names["model"].named_parameters() if p.requires_grad}
    assert learning == {"layer4", "fc"}
    compile(keras, "day20.md", "exec")  # TensorFlow is none of the course's packages


def test_the_recipe_of_day_21_gives_batches_from_files(tmp_path):
    names = {}
    for code in code_of("day21"):
        exec(code, names)
    Image.new("L", (300, 200), 128).save(tmp_path / "grey.png")
    data = names["CustomDataset"](tmp_path, [("grey.png", 1)], names["train_transform"])
    (image, label), side = data[0], names["preset"].crop_size[0]
    assert (len(data), label, tuple(image.shape), image.dtype) == (1, 1, (3, side, side), torch.float32)


def test_the_recipe_of_day_22_is_grad_cam():
    from course_utils.gradcam import explain
    from course_utils.pretrained_models import cam_layer

    names = {}
    exec(code_of("day22")[0], names)
    model = mini().requires_grad_(False).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    heat = names["grad_cam"](model, cam_layer(model), images, 1)
    signed = torch.from_numpy(explain(model, images, 1).signed)
    assert torch.allclose(heat, signed.clamp(min=0), atol=1e-6) and not images.requires_grad


# --- pictures and numbers ----------------------------------------------------------------------------------------


def test_pictures_and_numbers_are_those_of_the_notebooks_and_results():
    stale = [path.relative_to(ROOT).as_posix() for path in blog.renewed(ROOT)]
    assert not stale, f"{', '.join(stale)} out of date: run `course blog` and commit what it writes"


def test_every_picture_is_used_and_small():
    used = {Path(t).name for p in blog.pages_of(ROOT) for i, _, t in LINK.findall(p.read_text("utf-8")) if i}
    stored = {path.name for path in (ROOT / "notebooks" / "blog").glob("*.png")}
    wanted = set(FIGURES)
    assert stored <= wanted <= used
    assert all((ROOT / "notebooks" / "blog" / name).stat().st_size <= blog.MAX_PICTURE for name in stored)


def test_every_number_is_used_and_found():
    text = "".join(page.read_text(encoding="utf-8") for page in blog.pages_of(ROOT))
    assert {match[2] for match in blog.NUMBER.finditer(text)} == NUMBERS.keys()
    assert all(number.look_up(ROOT) for number in NUMBERS.values())


def test_no_line_begins_with_a_number_s_comment():
    for page in blog.pages_of(ROOT):  # it would begin a block of HTML, and tear the paragraph
        assert not re.findall(r"^ *<!--=.*", page.read_text(encoding="utf-8"), re.MULTILINE), page.name


def percent(name):
    return float(re.match(r"[+-]?[\d.]+", NUMBERS[name].look_up(ROOT))[0])


def bounds(name):
    return [float(x) for x in re.search(r"([+-]?[\d.]+) to ([+-]?[\d.]+)", NUMBERS[name].look_up(ROOT)).groups()]


def test_what_the_blogs_say_about_the_numbers_holds():
    assert percent("day20.scratch") < percent("day20.frozen") < percent("day20.progressive")
    assert percent("day20.two-per-class") > percent("day20.forty-per-class.random")
    low, high = bounds("day20.by-night")
    assert low <= percent("day20.majority") <= high, "by night it is no better than answering without looking"
    assert percent("day20.night-adapted") > high and percent("day20.day-adapted") < percent("day20.by-day")
    assert bounds("day21.swapped")[1] < bounds("day21.prepared")[0]
    assert bounds("day21.difference")[0] > 0, "the whole range is above zero"
    assert bounds("day21.rare.found")[1] < bounds("day21.rare.oversampled")[0]


def test_what_the_story_of_clever_hans_says_holds():
    if not blog.outputs_of(ROOT / "notebooks" / "day22.ipynb"):
        pytest.skip("day 22's notebook is not rendered")
    assert percent("day22.marked") >= 95 and percent("day22.unmarked") < bounds("day22.marked")[0]
    assert 100 * bounds("day22.on-badge")[0] > percent("day22.badge"), "more heat than the badge's share of the picture"
    assert bounds("day22.energy")[0] > bounds("day22.blob")[1]


def test_a_notebook_without_outputs_has_nothing_to_quote(tmp_path):
    unrun = new_notebook(cells=[new_code_cell("print(1)")])
    write_notebook(unrun, tmp_path / "notebooks" / "day20.ipynb")
    assert Printed("day20", r"^(\d)$").look_up(tmp_path) == blog.NOT_YET
    assert blog.picture_of(*PETS, tmp_path) is None
    unrun.cells[0].outputs = [new_output("stream", name="stdout", text="1\n")]
    write_notebook(unrun, tmp_path / "notebooks" / "day20.ipynb")
    assert Printed("day20", r"^(\d)$").look_up(tmp_path) == "1"


PETS = next(iter(FIGURES.items()))


@pytest.fixture
def project(tmp_path):
    """A copy of one notebook, with a page that quotes it."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "blog").mkdir(parents=True)
    (notebooks / "day20.ipynb").write_bytes((ROOT / "notebooks" / "day20.ipynb").read_bytes())
    (notebooks / "blog" / "day20.md").write_text("By night <!--=day20.by-night-->99 %<!--/-->.", encoding="utf-8")
    return tmp_path


def test_the_command_renews_pages_and_pictures_once(project, monkeypatch, capsys):
    monkeypatch.setattr(blog, "FIGURES", dict([PETS, [*FIGURES.items()][-1]]))  # day 22's notebook is not there
    assert blog.main(["--check"], project) == 1
    assert "run course blog" in capsys.readouterr().out
    assert blog.main([], project) == 0
    page = (project / "notebooks" / "blog" / "day20.md").read_text(encoding="utf-8")
    assert page == f"By night <!--=day20.by-night-->{NUMBERS['day20.by-night'].look_up(ROOT)}<!--/-->."
    assert (project / "notebooks" / "blog" / PETS[0]).read_bytes().startswith(b"\x89PNG")
    assert blog.main(["--check"], project) == 0
    assert sorted(p.name for p in (project / "notebooks" / "blog").iterdir()) == ["day20-pets.png", "day20.md"]


def test_what_cannot_be_found_is_named(project, monkeypatch):
    page = project / "notebooks" / "blog" / "day20.md"
    page.write_text("<!--=day20.by-nigth-->1<!--/-->", encoding="utf-8")
    with pytest.raises(CourseError, match=r"Did you mean day20\.by-night"):
        blog.main([], project)
    assert page.read_text(encoding="utf-8") == "<!--=day20.by-nigth-->1<!--/-->"
    with pytest.raises(CourseError, match="prints nothing that fits"):
        Printed("day20", r"^no such line (\d)").look_up(project)
    with pytest.raises(CourseError, match=r"0 of \d+ begin so"):
        blog.picture_of("day20-x.png", "Ten training cats", project)
    with pytest.raises(CourseError, match="begin so"):
        blog.picture_of("day20-x.png", "T", project)
    monkeypatch.setattr(blog, "MAX_PICTURE", 1000)
    with pytest.raises(CourseError, match="allowed are 1,000"):
        blog.picture_of(*PETS, project)


# --- formulas ----------------------------------------------------------------------------------------------------


def formulas_of(text):
    """LaTeX and True for a display, of each formula in a Markdown text."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$", text, re.DOTALL)
    return [(block or inline, bool(block)) for block, inline in found]


def markdown_cells(day):
    notebook = read_notebook(ROOT / "notebooks" / f"{day}.ipynb")
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def letters(text):
    return sorted(re.findall(r"[A-Za-z0-9]", text))


def test_every_formula_of_notebooks_and_answers_becomes_mathml():
    texts = [text for day in DAYS for text in markdown_cells(day)]
    texts += [path.read_text(encoding="utf-8") for path in sorted((ROOT / "interview_questions").glob("*.md"))]
    formulas = {formula for text in texts for formula in formulas_of(text)}
    assert len(formulas) > 200
    for latex, display in formulas:
        drawn = mathml(latex, display)
        assert drawn.startswith("<math") and f'display="{"block" if display else "inline"}"' in drawn, latex
        shown = "".join(ElementTree.fromstring(drawn).itertext())
        assert not re.search(r"[\\{}$_]|operatorname|mathbb", shown), f"{latex}: {shown} has TeX in it"
        # Commands are gone, but for functions that are written as words; every other letter and digit is there.
        without = re.sub(r"\\(ln|log|exp|cos|sin|min|max)\b|\\(?:[A-Za-z]+|.)", r"\1", latex)
        assert letters(without) == letters(shown), f"{latex}: {shown}"


@pytest.mark.parametrize(
    ("latex", "parts"),
    [
        (r"\mathrm{ReLU}\Big(\sum_k A^k\Big)", ["<mi>ReLU</mi>", '<mo minsize="1.623em" maxsize="1.623em">']),
        (r"\operatorname{softmax}(x)", ["<mo>softmax</mo>"]),
        (r"C_\text{in}", ["<mtext>in</mtext>"]),
        (r"\mathbb{R}^n", ["&#x0211D;"]),
        (r"\bigcup_k A^k", ["&#x022C3;"]),  # a symbol whose name begins like a size
        (r"25{,}088", ["<mn>25,088</mn>"]),
        (r"2 \ln x", ['<mo lspace="0.167em" rspace="0.167em">ln</mo>']),
        (r"a < b", ["<mo>&#x0003C;</mo>"]),
    ],
)
def test_what_latex_can_say_is_drawn(latex, parts):
    drawn = mathml(latex)
    ElementTree.fromstring(drawn)
    assert drawn.startswith("<math") and all(part in drawn for part in parts)


@pytest.mark.parametrize("latex", [r"\bigotimes_k A^k \nosuchthing", "x_{", r"\left(", r"\frac", "<b>", r"a < \b"])
def test_a_misprinted_formula_is_shown_as_its_source(latex):
    drawn = mathml(latex)
    assert drawn == f"<code>{html.escape(latex)}</code>" or ElementTree.fromstring(drawn).tag.endswith("math")
    assert ("\\" in latex or "_" in latex) == drawn.startswith("<code>")


def test_markdown_leaves_formulas_alone():
    page = pages.markdown_to_html(
        "With $x_1 < y_1$ and *slanted* $a*b*c$, `$5`:\n\n$$\\sum_{i<n} a_i\n+ b_i$$\n\n| $k_1$ |\n| --- |\n| $k_2$ |"
    )
    assert page.count("<math") == page.count("</math>") == 5 and page.count("<em>") == 1
    assert page.count('display="block"') == 1 and "<code>$5</code>" in page
    assert page.replace("<code>$5</code>", "").count("$") == 0
    assert (
        pages.markdown_to_html("$x_1 < y$", lambda latex, display: f"[{latex}{display}]") == "<p>[x_1 < yFalse]</p>\n"
    )


def test_the_page_of_a_notebook_draws_all_its_formulas():
    cells = [new_markdown_cell(text) for text in markdown_cells("day22")]
    page = pages.page_of(new_notebook(cells=cells), ROOT / "notebooks", "day22")
    drawn = re.findall(r"<math.*?</math>", page, re.DOTALL)
    assert len(drawn) == sum(len(formulas_of(cell.source)) for cell in cells) > 3
    for formula in drawn:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(formula).iter()}
        assert tags & {"mi", "mn"} and all(tag.startswith("m") for tag in tags), "Markdown stays out of formulas"
    outside = re.sub(r"(?s)<(style|code|pre|math)\b.*?</\1>", "", page)
    assert not re.search(r"\$[^$]+\$|\\[a-z]+\{", outside)
