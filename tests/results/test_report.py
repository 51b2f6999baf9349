"""The report: one page that needs nothing else, seen in a real browser."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.results.report import PAGE
from hvae_hpc.results.tables.table import Table
from hvae_hpc.results.write import write_results
from hvae_hpc.runs.run import Run
from tests.results.made_up import SMALL_ARMS, segments, write_samples, write_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
EVIL = "<img src=x onerror=\"document.title='obeyed'\"></script><script>document.title='obeyed'</script>"


def lost(run: Run) -> bool:
    return bool(segments([run], "vae+100")) and run.config.seed == 2


@pytest.fixture(scope="module")
def report(all_formats: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    arms = (*SMALL_ARMS, ArmConfig(name=EVIL, n_copies=3))
    write_samples(folder, write_sweep(folder, arms=arms, likelihoods=True, skip=lost), px=32)
    return write_results(folder, "small", partial=True)[-1]


def look(page: Path, *options: str) -> str:
    """Open a page in a headless browser without network, and return the document after its scripts ran."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    done = subprocess.run(
        [*command, *options, f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_the_page_opens_with_the_verdict_and_has_everything(report: Path) -> None:
    page = report.read_text()
    places = [page.index(text) for text in (
        'class="verdict"', "none of the pairs tried raises Dice by 0.02", 'id="table1"', 'id="arms"', 'id="table2"',
        'id="likelihoods"', 'id="claims"', 'id="figures"', "data:image/png;base64,", 'id="missing"',
        "segment/brats2021-vae+100-s2-", 'id="cost"', 'id="settings"', "optim.images = 320", 'id="made-with"', "node1",
    )]  # fmt: skip
    assert places == sorted(places)
    assert "<!--" not in page
    assert page.count("data:image/png") == len(list(report.parent.glob("*.png"))) == 8


def test_every_figure_has_a_sentence_and_names_its_vector_files_which_are_not_put_in(
    report: Path,
) -> None:
    page = report.read_text()
    captions = re.findall(r"<figcaption>([^<]*) \((<a .*?)\)</figcaption>", page)
    assert len(captions) == 8
    assert all(sentence for sentence, _ in captions)
    links = [re.findall(r'<a href="([^"]*)">([^<]*)</a>', files) for _, files in captions]
    assert all(target == name for of_figure in links for target, name in of_figure)
    named = {name for of_figure in links for name, _ in of_figure}
    assert named == {
        path.name for path in report.parent.iterdir() if path.suffix in (".png", ".svg", ".pdf")
    }
    assert "image/svg" not in page
    assert "application/pdf" not in page


def test_the_page_says_what_the_arms_are_what_it_took_and_what_figures_leave_out(
    report: Path,
) -> None:
    page = report.read_text()
    intro = page[: page.index('id="table1"')]
    assert "<b>Reference</b>: " in intro
    assert "<b>Copies ×5</b>: " in intro
    runs = int(re.search(r"(\d+) of \d+ runs are done", intro)[1])
    assert f"They took {runs * 12.5 / 60:.1f} minutes of CPU." in intro
    assert page.count("Partial: 1 of ") == 1
    assert "; not drawn: " in page


def test_the_page_loads_nothing(report: Path) -> None:
    page = re.sub(r'"data:image/png;base64,[^"]*"', '""', report.read_text())
    assert not re.search(r"https?:|src=\"[^\"]|@import|url\(", page.replace("&lt;img src=x", ""))
    assert "default-src 'none'" in page


@browser
def test_no_name_is_obeyed_in_a_browser(report: Path) -> None:
    document = look(report, "--dump-dom")
    assert "<title>small: do synthetic pairs help?</title>" in document
    assert document.count("<script>") == 1
    assert document.count("&lt;script&gt;document.title='obeyed'") > 0


@browser
def test_a_click_sorts_a_table_by_numbers_with_gaps_at_the_end(
    report: Path, tmp_path: Path
) -> None:
    def rows(clicks: int) -> list[str]:
        press = "document.querySelectorAll('#arms th')[3].firstChild.click();" * clicks
        page = tmp_path / f"clicked-{clicks}.html"
        page.write_text(report.read_text().replace("</body>", f"<script>{press}</script></body>"))
        document = look(page, "--dump-dom")
        table = document[document.index('id="arms"') :]
        body = table[table.index("<tbody>") : table.index("</tbody>")]
        return [re.findall(r"<td[^>]*>(.*?)</td>", row)[3] for row in body.split("</tr>")[:-1]]

    before, once, twice = rows(0), rows(1), rows(2)
    assert sorted(before) == sorted(once) == sorted(twice)
    numbers = [float(cell.split()[0]) for cell in once if cell]
    assert numbers == sorted(numbers)
    assert [float(cell.split()[0]) for cell in twice if cell] == numbers[::-1]
    assert once[-1] == twice[-1] == ""  # the reference's own difference


@browser
def test_a_row_s_names_stay_in_sight_when_its_table_is_scrolled(tmp_path: Path) -> None:
    rows = tuple(
        ("brats2021", f"Standard aug. ×5 + HVAE aggregated + {i}", *["0.5 [0.4, 0.6]"] * 9)
        for i in range(3)
    )
    columns = ("data", "arm", *"abcdefghi")
    table = Table(title="T", columns=columns, rows=rows)
    measure = """const box = document.querySelector(".scroll"), cells = box.querySelector("tbody tr").cells;
        box.scrollLeft = 1e4;
        const at = (place) => place.getBoundingClientRect();
        document.title = [box.scrollLeft > 100, at(cells[0]).left >= at(box).left, at(cells[1]).left >= at(cells[0]).right - 1,
            at(cells[1]).right < at(box).right - 100].join(" ");"""
    page = tmp_path / "page.html"
    text = PAGE.read_text().replace("<!--tables-->", table.to_html())
    page.write_text(text.replace("</body>", f"<script>{measure}</script></body>"))
    assert "<title>true true true true</title>" in look(page, "--dump-dom", "--window-size=500,900")


@browser
@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_fits_a_wide_and_a_narrow_window(report: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "measured.html"
    measure = "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth"
    page.write_text(report.read_text().replace("</body>", f"<script>{measure}</script></body>"))
    document = look(page, "--dump-dom", f"--window-size={width},900")
    found = re.search(r"<title>(\d+) of (\d+)</title>", document)
    assert found
    assert int(found[1]) <= int(found[2])  # only tables scroll sideways, each by itself
    picture = tmp_path / "page.png"
    look(report, f"--screenshot={picture}", f"--window-size={width},900", "--hide-scrollbars")
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] == width
    assert 0.01 < (pixels < 128).mean() < 0.3  # dark text on a bright page
