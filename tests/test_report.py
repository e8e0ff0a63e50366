"""The report: self-contained, says what is missing and what was not shown; the command ends in clear words."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import time
from dataclasses import replace

import matplotlib
import nbformat
import pandas as pd
import pytest

matplotlib.use("Agg")

from ablations import cli
from ablations.contrasts import interaction, main_effect
from ablations.designs import OneAtATime, SpaceFilling
from ablations.factors import Factor
from ablations.markup import table
from ablations.notebooks import NOTEBOOKS, read_notebook
from ablations.origin import Origin
from ablations.plots import by_tier, interaction_map
from ablations.report import headlines, write_report
from ablations.report.browser import browser
from ablations.report.sections import combined
from ablations.studies import Arm, load_study
from ablations.table import load_results, study_folder, tidy, write_results
from lvlm.errors import InputError
from lvlm.records import RunRecord
from sweeps.planner import make_plan
from sweeps.read import export
from sweeps.template import write_study as write_template
from tests.sweeps_fakes import write_run
from tests.synthetic_results import scores, write_answers, write_study


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers", runs=16)
    write_study(home, "tiling", runs=1)
    return home


@pytest.fixture(scope="module")
def written(home):
    """The report on the drivers, without notebooks."""
    return write_report(load_results("drivers", home=home), notebooks=False)


def test_an_unfinished_sweep_gives_a_report_on_what_is_there(home, written):
    results, path = load_results("drivers", home=home), written
    page = path.read_text(encoding="utf-8")
    assert path == (home / "studies" / "drivers" / "report.html").resolve()
    assert "5 of 21 planned runs are missing" in page
    assert "Not shown by these data" in page and "within noise" in page
    assert all(f"{found.points:+.1f}" in page for _, found in results.verdicts())
    assert page.count("<picture>") == 7 and page.count("data:image/png;base64,") == 14, (
        "each for a wide and a narrow page"
    )
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", page), "nothing is fetched from elsewhere"


def test_failed_cells_are_named_with_their_reason(tmp_path):
    study = write_study(tmp_path, "drivers", runs=16)
    cells = study.cells()
    done = [(cell, scores(cell.arm, cell.seed)) for cell in cells[:16]]
    failed = {cells[16].id: "Diverged: the loss is not finite at step 3"}
    write_results(tmp_path / "studies" / "drivers", tidy(study, done), planned=cells, failed=failed)
    results = load_results("drivers", home=tmp_path)
    assert results.summary().endswith("5 of 21 planned runs are missing (1 failed)")
    page = write_report(results, notebooks=False).read_text(encoding="utf-8")
    assert f"seed {cells[16].seed}: Diverged: the loss is not finite" in page and "--retry-failed" in page


def test_a_study_with_one_run_still_reports(home):
    results = load_results("tiling", home=home)
    page = write_report(results, notebooks=True).read_text(encoding="utf-8")
    assert "9 of 10 planned runs are missing" in page and "Too few arms that vary tiles" in page
    assert "not judged" in page


def test_headlines_are_three_lines_with_interval_and_verdict(home):
    lines = headlines(load_results("drivers", home=home))
    assert len(lines) == 3
    assert all(
        re.search(r"[+-]\d+\.\d points \[[+-]\d+\.\d, [+-]\d+\.\d\], \d seeds: (shown|within noise|contradicted)", line)
        for line in lines
    )


def test_the_command_prints_where_the_report_is_and_how_to_open_mlflow(home, capsys, monkeypatch):
    monkeypatch.setattr("ablations.report.write_report", lambda results, **_: results.folder / "report.html")
    assert cli.main(["report", "drivers", "--home", str(home)]) == 0
    printed = capsys.readouterr().out
    assert (
        "report.html" in printed and "python -m sweeps ui" in printed and "5 of 21 planned runs are missing" in printed
    )
    assert printed.count(" points [") == 3


def own_study(home, *, overrides=()):
    """A study made by `sweeps new`, with made-up runs, exported as after a launch."""
    path = write_template("mine", home)
    plan = make_plan(path, overrides=overrides)
    place = plan.place(home)
    plan.save(place)
    for cell in plan.cells:
        folder = place.cell(cell.id)
        write_run(cell.run_config(), folder)
        scores(Arm(cell.levels, cell.arm), cell.seed).to_parquet(folder / "scores.parquet")
        record = RunRecord.load(folder)
        tokens = 900.0 if cell.levels["languages"] == "en" else 1000.0
        record.budget = {"samples": 96.0, "llm_tokens": tokens, "images": 96.0, "views": 96.0, "seconds": 7.0}
        record.save(folder)
    export(place, plan)
    return path, place


def test_a_study_of_the_users_own_is_reported_with_its_notebooks(tmp_path, capsys):
    path, place = own_study(tmp_path)
    assert cli.main(["report", str(path), "--home", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "English-only instruction lowers the score" in printed and "3 seeds: shown" in printed
    page = (place.folder / "report.html").read_text(encoding="utf-8")
    assert "did not run" not in page and page.count("<summary>code</summary>") > 4, "the kernel knows the study, too"
    assert load_results(place.folder).study is not None


def test_a_report_says_why_the_study_behind_it_is_not_known(tmp_path):
    path, place = own_study(tmp_path)
    text, version = path.read_text(encoding="utf-8"), load_results(place.folder).origin.version
    renamed = text.replace('"english_share"', '"share"')

    def said(given):
        results = load_results(given, home=tmp_path)
        assert results.study is None and not results.table.empty
        page = write_report(results, notebooks=False).read_text("utf-8")
        (line,) = headlines(results)
        assert html.escape(line.removeprefix("No headline effects. ")) in page
        with pytest.raises(InputError, match="Name a baseline") as refused:
            results.effects(metric="score")
        assert str(refused.value).startswith(results.unknown)
        return line

    path.write_text(text.replace("study = Study(", "study = Studie("), encoding="utf-8")
    assert re.search(
        rf"not known here: The study file {path}, line \d+: NameError: name 'Studie' is", said(place.folder)
    )
    path.write_text(renamed, encoding="utf-8")
    for given in (place.folder, path):
        assert (
            f"not known here: its file has changed since the launch (version {version}) and declares the factors "
            "languages, share, while the table has languages, english_share." in said(given)
        )
    path.unlink()
    assert f"not known here: its file {path} does not exist any more." in said(place.folder)
    (place.folder / "study.json").unlink()
    assert "no study of the toolkit has that name, and no study.json beside the table" in said(place.folder)


def test_the_head_of_a_report_says_what_was_launched(tmp_path, capsys):
    changed = ["instruct.optim.lr=0.5", "evaluate.items=3"]
    path, place = own_study(tmp_path, overrides=changed)
    page = write_report(load_results(path, home=tmp_path, overrides=changed), notebooks=False).read_text("utf-8")
    head = page[: page.index("<h2")]
    assert place.folder.name.startswith("mine@")
    assert all(text in head for text in ("default", " ".join(changed), "0, 1, 2", "c0ffee", "tower", "1234"))
    assert cli.main(["report", str(path), "--home", str(tmp_path)]) == 2
    assert f"other overrides are there: {place.folder.name}." in capsys.readouterr().err


def test_the_report_shows_what_an_arm_costs_and_what_was_held_equal(tmp_path):
    path, _ = own_study(tmp_path)
    page = write_report(load_results(path, home=tmp_path), notebooks=False).read_text("utf-8")
    assert "Held equal over the arms (within 1%): samples, images, views. Not equal: LLM tokens" in page
    assert "<td class='n'>900</td>" in page and "<td class='n'>1,000</td>" in page


def test_levels_stand_beside_the_majority_answer_and_the_undetermined_share(written):
    page = written.read_text("utf-8")
    table = page[page.index("<h2 id='levels-and") :]
    heads = re.findall("<th scope='col'>(.*?)</th>", table[: table.index("</thead>")])
    assert heads[-4:] == ["score", "majority answer", "fidelity", "language undetermined"]
    assert "<td class='n'>15.0</td>" in table and "<td class='n'>2.0</td>" in table


def test_effects_and_verdicts_are_tables_beside_the_report(home, written):
    results, folder = load_results("drivers", home=home), written.parent
    every, judged = pd.read_csv(folder / "effects.csv"), pd.read_csv(folder / "verdicts.csv")
    assert len(judged) == len(results.study.expectations) and set(judged["verdict"]) >= {"shown"}
    expected = results.effects(metric="fidelity", by="tier")
    found = every[(every["metric"] == "fidelity") & ~every["group"].str.contains("/")]
    assert found["points"].tolist() == pytest.approx(expected["points"].tolist(), nan_ok=True)
    assert {"right_elsewhere", "score"} <= set(every["metric"])


def test_the_report_leaves_one_picture_for_each_factor_with_two_arms(tmp_path):
    write_study(tmp_path, "drivers", runs=3)  # the baseline and two more groups of languages
    results = load_results("drivers", home=tmp_path)
    for name in ("languages", "english_share", "tiles"):
        (results.folder / f"by_{name}.png").write_text("stale")
    write_report(results, notebooks=False)
    (picture,) = results.folder.glob("by_*.png")
    assert picture.name == "by_languages.png" and picture.read_bytes().startswith(b"\x89PNG")


def test_answers_are_of_the_seed_with_the_most_arms_and_say_how_many(tmp_path):
    folder = tmp_path / "studies" / "tiling"
    write_answers(folder, write_study(tmp_path, "tiling"), items=2)
    results, path = load_results("tiling", home=tmp_path), folder / "predictions.parquet"
    rows = pd.read_parquet(path)
    rows[(rows["seed"] > 0) | (rows["arm"] == results.baseline)].to_parquet(path)
    assert "2 of the 2 arms (seed 1)" in browser(results).body
    rows.iloc[:0].to_parquet(path)
    assert "holds no answers" in browser(results).body
    assert "a&lt;b" in browser(replace(results, folder=tmp_path / "a<b")).body


def test_a_table_without_rows_or_with_a_name_twice_is_a_table():
    empty = pd.DataFrame({"arm": pd.Series(dtype=object), "points": pd.Series(dtype=float)})
    assert "<th scope='col'>points</th>" in table(empty, "none")
    twice = table(pd.DataFrame([["x", 1.0, "y"]], columns=["arm", "n", "n"]), "twice")
    assert "<td class='n'>1.0</td><td>y</td>" in twice


def test_main_effects_and_interactions_stand_only_where_arms_cross_factors(tmp_path, written):
    title = "Main effects and interactions"
    assert title not in written.read_text("utf-8"), "the default budget changes one factor at a time"
    write_study(tmp_path, "drivers", budget="full")
    results = load_results("drivers", home=tmp_path)
    (section,) = combined(results)
    page = section.body
    assert section.title == title and page.count("<table") == 2
    heads = re.findall("<th scope='col'>(.*?)</th>", page)
    assert heads == [*("main effect", "combinations", "en", "T1", "multilingual"), *("interaction", *heads[1:5])]
    assert page.count("<tr>") == 2 + 3 + 5 + 1 + 2 * 5, "levels of three factors; two more groups of languages x shares"
    for found, said in (
        (main_effect(results, "tiles", 2, 1, metric="score", group="T1"), "2 x 2 tiles instead of no tiles"),
        (
            interaction(results, ("languages", "T5", "all"), ("english_share", 0.9, 0.5), metric="score", group="T1"),
            "T5 instead of all languages; 90% English instead of 50% English",
        ),
    ):
        row = next(row for row in page.split("<tr>") if f"<th scope='row'>{said}</th>" in row)
        assert f"<td class='n'>{found.n_combinations}</td>" in row and f"{found.points:+.1f} [{found.low:+.1f}" in row


def test_an_interval_that_crosses_its_margin_is_said_so(tmp_path):
    write_study(tmp_path, "tiling", noise=3.0)
    results = load_results("tiling", home=tmp_path)
    page = write_report(results, notebooks=False).read_text("utf-8")
    said = "the interval crosses the margin of ±5 points"
    assert f"<td class='v-noise'>within noise</td><td>{said}</td>" in page and f"within noise ({said})" in page
    assert "interval crosses the margin" in page[page.index("<section id='how-to-read-the-numbers'") :].replace(
        "\n", " "
    )
    judged = pd.read_csv(results.folder / "verdicts.csv").set_index("group")
    assert judged.loc["vqa/en", "reason"] == said


@pytest.mark.parametrize(
    ("seeds", "prints", "said"),
    [
        ((0, 1, 2), ("aa",), "one draw shared by all seeds: aa"),
        ((0, 1, 2), ("aa", "bb", "cc"), "3 draws, one per seed: aa, bb, cc"),
        ((0, 1, 2, 3, 4), ("aa", "bb", "cc"), "3 draws over 5 seeds: aa, bb, cc"),
        ((0,), ("aa",), "one draw: aa"),
    ],
)
def test_the_origin_says_which_seeds_share_a_backbone(seeds, prints, said):
    given = {"study": "mine", "source": "mine", "version": "1", "budget": "default"}
    origin = Origin(**given, seeds=seeds, git_commits=("c0", "ffee"), backbones={"llm": prints})
    lines = dict(origin.lines())
    assert lines["backbone: llm"] == said and "not all of the same" not in lines["backbone: llm"]
    assert "the runs are not all of the same code" in lines["code (git commit)"]


def test_a_notebook_that_fails_is_a_warning_in_the_report(home, monkeypatch):
    def broken(stem):
        notebook = read_notebook(stem)
        notebook.cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        notebook.cells.append(nbformat.v4.new_code_cell("print('ran')"))
        if stem == NOTEBOOKS["languages"]:
            notebook.cells[-1] = nbformat.v4.new_code_cell("raise ValueError('no such <arm>')")
        return notebook

    monkeypatch.setattr("ablations.notebooks.read_notebook", broken)
    monkeypatch.setattr("ablations.report.sections.effects", lambda results: [])  # takes longer than the notebooks
    page = write_report(load_results("drivers", home=home)).read_text("utf-8")
    assert f"The notebook {NOTEBOOKS['languages']} did not run" in page and "no such &lt;arm&gt;" in page
    assert page.count("did not run") == 1 and page.count("<pre>ran") == 2, "the other notebooks are there"


def test_bad_input_is_one_paragraph_and_status_2(tmp_path, capsys):
    assert cli.main(["report", "drivers", "--home", str(tmp_path)]) == 2
    assert "There are no results" in capsys.readouterr().err
    assert cli.main(["report", "dryvers", "--home", str(tmp_path)]) == 2
    assert "no study 'dryvers'" in capsys.readouterr().err


def test_help_is_quick_imports_nothing_heavy_and_ends_in_a_line_to_paste():
    show = "import sys; from ablations.cli import _command_line; print(_command_line().parser.format_help());"
    code = show + "print(sorted({'numpy', 'pandas', 'torch', 'scipy', 'pydantic', 'matplotlib'} & set(sys.modules)))"
    seconds = []
    for _ in range(3):  # the best of three: other processes may be busy
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - start)
    out = done.stdout.strip().splitlines()
    assert out[-1] == "[]"
    assert [line for line in out[:-1] if line][-1].strip().startswith("python -m ablations report")
    assert min(seconds) < 1.5


def test_list_names_every_study(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "21 runs; BUDGET=full: 145 runs" in printed and "number_of_languages" in printed


def test_a_factor_with_a_range_breaks_no_table_and_no_figure(tmp_path):
    drivers = load_study("drivers")
    languages, share, tiles = drivers.factors
    ranged = Factor(
        name=share.name, path=share.path, range=(0.01, 0.99), requires={"languages": ("T5", "T5-T3", "all")}
    )
    study = replace(
        drivers, name="ranged", factors=(languages, ranged, tiles), design=SpaceFilling(points=16), full_design=None,
        full_seeds=None, expectations=(),
    )  # fmt: skip
    cells = study.cells()
    extra = [(cell, scores(cell.arm, cell.seed)) for cell in cells]
    write_results(study_folder("ranged", tmp_path), tidy(study, extra), planned=cells)
    results = load_results(study, home=tmp_path)
    assert len(results.arms()) == len(study.arms()) and len(results.effects()) > 10
    seen = {arm.levels["english_share"] for arm in study.arms()} - {None}
    assert set(results.levels_of(ranged)) == seen and len(seen) > 8
    assert study.baseline_arm.label in results.margin("english_share")
    text = write_report(results, notebooks=False).read_text(encoding="utf-8")
    assert "english_share 0." in text and "Interaction map" not in text
    with pytest.raises(InputError, match="'english_share' has a range"):
        interaction_map(results)
    named = {"english_share": (0.25, 0.75), "tiles": (1, 2), "languages": ("all",)}
    two = replace(study, design=OneAtATime(levels=named))
    cells = two.cells()
    extra = [(cell, scores(cell.arm, cell.seed)) for cell in cells]
    write_results(study_folder("ranged", tmp_path), tidy(two, extra), planned=cells)
    results = load_results(two, home=tmp_path)
    assert results.levels_of(ranged) == (0.25, 0.5, 0.75) and len(results.margin("english_share")) == 3
    assert by_tier(results, "english_share").axes
    found = results.main_effect("english_share", 0.75, 0.25, group="multilingual")
    assert found.n_combinations == 1 and found.points < 0
    assert results.main_effect("tiles", 2, 1, group="multilingual").n_combinations == 1
