"""The report: self-contained, says what is missing and what was not shown; the command ends in clear words."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import matplotlib
import pytest

matplotlib.use("Agg")

from ablations import cli
from ablations.report import headlines, write_report
from ablations.table import load_results
from tests.synthetic_results import write_study


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers", runs=16)
    write_study(home, "tiling", runs=1)
    return home


def test_an_unfinished_sweep_gives_a_report_on_what_is_there(home):
    results = load_results("drivers", home=home)
    path = write_report(results, notebooks=False)
    page = path.read_text(encoding="utf-8")
    assert path == (home / "studies" / "drivers" / "report.html").resolve()
    assert "5 of 21 planned runs are missing" in page
    assert "Not shown by these data" in page and "within noise" in page
    assert all(f"{found.points:+.1f}" in page for _, found in results.verdicts())
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", page), "nothing is fetched from elsewhere"


def test_a_study_with_one_run_still_reports(home):
    results = load_results("tiling", home=home)
    page = write_report(results, notebooks=True).read_text(encoding="utf-8")
    assert "5 of 6 planned runs are missing" in page and "Too few arms that vary tiles" in page
    assert "not judged" in page


def test_headlines_are_three_lines_with_interval_and_verdict(home):
    lines = headlines(load_results("drivers", home=home))
    assert len(lines) == 3
    assert all(
        re.search(r"[+-]\d+\.\d points \[[+-]\d+\.\d, [+-]\d+\.\d\], \d seeds: (shown|within noise|contradicted)", line)
        for line in lines
    )


def test_the_command_prints_where_the_report_is_and_how_to_open_mlflow(home, capsys, monkeypatch):
    monkeypatch.setattr("ablations.report.write_report", lambda results: results.folder / "report.html")
    assert cli.main(["report", "drivers", "--home", str(home)]) == 0
    printed = capsys.readouterr().out
    assert (
        "report.html" in printed and "python -m sweeps ui" in printed and "5 of 21 planned runs are missing" in printed
    )
    assert printed.count("points") == 3


def test_bad_input_is_one_paragraph_and_status_2(tmp_path, capsys):
    assert cli.main(["report", "drivers", "--home", str(tmp_path)]) == 2
    assert "There are no results" in capsys.readouterr().err
    assert cli.main(["report", "dryvers", "--home", str(tmp_path)]) == 2
    assert "no study 'dryvers'" in capsys.readouterr().err


def test_help_is_quick_imports_nothing_heavy_and_ends_in_a_line_to_paste():
    start = time.process_time()
    show = "import sys; from ablations.cli import _parser; print(_parser().format_help());"
    code = show + "print(sorted({'pandas', 'torch', 'scipy'} & set(sys.modules)))"
    out = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        .stdout.strip()
        .splitlines()
    )
    assert out[-1] == "[]"
    assert [line for line in out[:-1] if line][-1].startswith("python -m ablations report")
    assert time.process_time() - start < 1


def test_list_names_every_study(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "21 runs; BUDGET=full: 145 runs" in printed and "number_of_languages" in printed
