"""Studies: everything is checked when declared, and a cell's id says what can change its result and nothing else."""

from __future__ import annotations

import pytest

from ablations import outcomes
from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study, list_studies, load_study
from ablations.table import load_results, study_folder, tidy, write_results
from lvlm.config import fingerprint
from lvlm.errors import InputError
from sweeps.plan import Place, find_home
from sweeps.planner import make_plan
from tests.synthetic_results import scores, write_study

CORPORA = {"corpora": [{"path": "data/shapes", "split": "instruct"}], "languages": "all", "english_share": 0.5}
BASE = {"instruct": {"mix": CORPORA, "epochs": 1}}
TILES = Factor(name="tiles", path="model.tiles", levels=(1, 2))


ALIKE = Factor(name="tiles", path="model.tiles", levels=(1, 2), labels={1: "few", 2: "few"})


def expect(**changes):
    given = {"claim": "x", "metric": "score", "group": "en", "arm": {"tiles": 2}, "direction": "higher"}
    return Expectation(**{**given, **changes})


def declare(**changes):
    given = {
        "name": "mine", "question": "?", "base": BASE, "factors": (TILES,), "baseline": {"tiles": 1},
        "design": FullGrid(), "seeds": (0, 1),
    }  # fmt: skip
    return Study(**{**given, **changes})


def test_the_shipped_studies_load_and_the_drivers_fit_a_lunch_break():
    assert list_studies() == (
        "allocation", "answer_mix", "continue_or_merge_lora", "drivers", "english_share", "hundred_languages",
        "number_of_languages", "paint_transfer", "pivot_alignment", "pivot_choice", "pivot_frozen", "pivot_kind",
        "pivot_native", "pivot_output", "pivot_pairs", "pivot_text", "pivot_unseen", "pivot_where", "pretrain_share",
        "text_in_image", "tiling", "translation_quality",
    )  # fmt: skip
    drivers = load_study("drivers")
    assert 18 <= len(drivers.cells("default")) <= 24
    assert len(drivers.cells("full")) == len(drivers.arms("full")) * 5
    for factor in drivers.factors:
        levels = {arm.levels[factor.name] for arm in drivers.arms("default")} - {None}
        assert len(levels) >= 2, f"{factor.name} has one level in the default design"


SHIPPED = {
    ("drivers", "default"): "a505234dd4da", ("drivers", "full"): "f382729940b2",
    ("english_share", "default"): "39e1365673d6", ("hundred_languages", "default"): "dcc600f12de9",
    ("number_of_languages", "default"): "d9dddff01217", ("tiling", "default"): "30399dd94c58",
    ("allocation", "default"): "02562e3429f5", ("continue_or_merge_lora", "default"): "e125f8f1b49a",
    ("pretrain_share", "default"): "6f9c30ba9c51", ("answer_mix", "default"): "135354160988",
    ("text_in_image", "default"): "72da9ce805fa",
    ("pivot_alignment", "default"): "292b00c0d8f5", ("pivot_choice", "default"): "671b8af55863",
    ("pivot_frozen", "default"): "997aa3512c97", ("pivot_kind", "default"): "3ff4e609a959",
    ("pivot_output", "default"): "999aa0ec62fd", ("pivot_pairs", "default"): "b15133be45df",
    ("pivot_text", "default"): "b985ec204f0c", ("pivot_unseen", "default"): "244746eca406",
    ("pivot_where", "default"): "3f3a5e7a4b67", ("pivot_native", "default"): "ad7d82880022",
    ("translation_quality", "default"): "a224c9765a53",
}  # fmt: skip
"""Study and budget -> fingerprint of the ids of its cells, under which finished runs lie in users' folders."""


@pytest.mark.parametrize(("name", "budget"), SHIPPED)
def test_the_cells_of_the_shipped_studies_keep_their_ids(name, budget):
    cells = load_study(name).cells(budget)
    planned = {cell.id for cell in make_plan(name, budget=budget).cells}
    assert fingerprint([cell.id for cell in cells]) == SHIPPED[name, budget]
    assert planned == {cell.id for cell in cells}


@pytest.mark.parametrize("name", sorted(set(list_studies()) - {"drivers", "hundred_languages"}))
def test_the_studies_of_the_claims_have_five_seeds(name):
    study = load_study(name)
    assert study.seeds_of("default") == study.seeds_of("full") == (0, 1, 2, 3, 4)
    most = {"pivot": 155, "paint": 55}.get(name.partition("_")[0], 40)
    assert len(study.cells()) <= most and study.expectations


def named(**changes):
    """A factor whose levels are names of settings."""
    settings = {"few": {"model.tiles": 1}, "many": {"model.tiles": 2, "instruct.optim.lr": 0.5}}
    return Factor(
        **{"name": "views", "path": "model.tiles", "levels": ("few", "many"), "settings": settings, **changes}
    )


def test_a_level_may_stand_for_several_settings():
    study = declare(factors=(named(),), baseline={"views": "few"})
    few, many = (cell.config for cell in study.cells()[:2])
    assert (few.model.tiles, many.model.tiles) == (1, 2)
    assert (few.instruct.optim.lr, many.instruct.optim.lr) == (1e-3, 0.5)
    assert study.arms()[1].levels == {"views": "many"}
    plain = declare().cells()[0]
    assert plain.id == study.cells()[0].id, "a cell is what it runs, not what its levels are called"
    with pytest.raises(InputError, match=r"sets 'instruct\.optim\.lr', which study 'mine' varies itself \(views\)"):
        study.cells(overrides=["instruct.optim.lr=0.1"])
    with pytest.raises(InputError, match="different names and paths"):
        declare(factors=(named(), TILES), baseline={"views": "few", "tiles": 1})


def test_settings_without_a_stage_take_it_away():
    pretrain = {**BASE["instruct"], "optim": {"lr": 0.1}}
    none = named(path="pretrain.optim.lr", settings={"few": {"pretrain": None}, "many": {"pretrain.optim.lr": 0.2}})
    study = declare(base={**BASE, "pretrain": pretrain}, factors=(none,), baseline={"views": "many"})
    many, few = (cell.config for cell in study.cells()[:2])
    assert few.pretrain is None and many.pretrain.optim.lr == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"few": {"model.tiles": 1}}}, "settings say what each of its levels stands for"),
        ({"levels": (), "range": (1, 2)}, "settings say what each of its levels"),
        ({"settings": {"few": {"model.tile": 1}, "many": {}}}, r"level 'few': 'model.tile' is not a field"),
    ],
)
def test_a_fault_in_settings_is_one_clear_error(changes, message):
    with pytest.raises(InputError, match=message):
        named(**changes)


def test_a_level_whose_settings_no_config_takes_is_an_error():
    wrong = named(settings={"few": {"model.tiles": 1}, "many": {"model.tiles": 20}})
    with pytest.raises(InputError, match=r"factor 'views', level 'many': 'model.tiles'"):
        declare(factors=(wrong,), baseline={"views": "few"})


def test_cells_come_seed_by_seed_and_once_each():
    cells = load_study("drivers").cells("full")
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert len({cell.id for cell in cells}) == len(cells) == len({(cell.arm.label, cell.seed) for cell in cells})


def test_a_cell_holds_its_levels_and_its_seed():
    for cell in load_study("drivers").cells("default"):
        assert cell.config.seed == cell.seed
        assert cell.config.model.tiles == cell.arm.levels["tiles"]
        assert cell.config.instruct.mix.languages == cell.arm.levels["languages"]
        assert cell.config.instruct.mix.english_share == cell.arm.levels["english_share"]


@pytest.mark.parametrize(
    "text", ["compute.micro_batch_tokens=512", "compute.loader_workers=2", "compute.evaluate_batch=8"]
)
def test_the_id_of_a_cell_ignores_what_cannot_change_its_result(text):
    study = declare()
    assert study.cells(overrides=[text])[0].id == study.cells()[0].id
    assert declare(name="other").cells()[0].id == study.cells()[0].id


@pytest.mark.parametrize(
    "text", ["compute.precision=bf16", "compute.threads=3", "instruct.optim.lr=0.5", "evaluate.items=3"]
)
def test_the_id_of_a_cell_follows_what_can_change_its_result(text):
    study = declare()
    assert study.cells(overrides=[text])[0].id != study.cells()[0].id


def test_cells_are_the_same_in_both_budgets_where_they_overlap():
    study = load_study("drivers")
    full = {(cell.arm.label, cell.seed): cell.id for cell in study.cells("full")}
    assert all(
        full[cell.arm.label, cell.seed] == cell.id
        for cell in study.cells("default")
        if (cell.arm.label, cell.seed) in full
    )
    assert sum((cell.arm.label, cell.seed) in full for cell in study.cells("default")) == 21


def test_an_override_of_a_factor_would_be_ignored_and_is_an_error():
    with pytest.raises(InputError, match=r"'model\.tiles', which study 'mine' varies itself"):
        declare().cells(overrides=["model.tiles=2"])


def test_the_budget_comes_from_the_environment(monkeypatch):
    study = declare(full_seeds=(0, 1, 2))
    monkeypatch.setenv("BUDGET", "full")
    assert len(study.cells()) == 6
    monkeypatch.setenv("BUDGET", "huge")
    with pytest.raises(InputError, match="'default' or 'full', not 'huge'"):
        study.cells()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": (Factor(name="tiles", path="model.tiles", levels=(1, 2, 20)),)}, r"level 20.*model.tiles"),
        ({"factors": (Factor(name="tiles", path="model.tiles", levels=(1, "2")),)}, r"level '2' would be read as 2"),
        ({"factors": (Factor(name="tiles", path="model.tiles", levels=(1, True)),)}, "different|read as"),
        ({"baseline": {"tile": 1}}, "the baseline names one level for each factor"),
        ({"baseline": {"tiles": 3}}, "3 is not a level of factor 'tiles'"),
        ({"seeds": (0, 0)}, "seeds are different"),
        ({"base": "huge"}, "huge does not exist"),
        ({"base": {"instruct": {"mix": CORPORA, "epoch": 1}}}, "unknown setting 'instruct.epoch'"),
        ({"fixed": {"model.tiles": 2}}, "both fixed and varied"),
        ({"name": "My study"}, "lower-case"),
        ({"primary": "score/T6"}, r"study 'mine': the primary outcome 'score/T6'.*score/T5"),
        ({"primary": "vqa/de"}, "the primary outcome 'vqa/de'"),
        ({"expectations": (expect(metric="scores"),)}, r"study 'mine': expectation 'x': 'scores' is not a metric"),
        ({"expectations": (expect(group="T6"),)}, r"study 'mine': expectation 'x': 'T6' is not a group"),
        ({"expectations": (expect(group="read/en"),)}, "'read' is no task; tasks are: caption, vqa, reading"),
        ({"expectations": (expect(than_group="multi"),)}, "'multi' is not a group"),
        ({"factors": (ALIKE,)}, "factor 'tiles': two levels have the label 'few'"),
    ],
)  # fmt: skip
def test_a_fault_in_a_study_is_one_clear_error(changes, message):
    with pytest.raises(InputError, match=message):
        declare(**changes)


@pytest.mark.parametrize("group", ["en", "T1", "multilingual", "sw", "vqa/multilingual", "reading/sw", "caption/T3"])
def test_groups_that_the_analysis_knows_can_be_expected(group):
    assert declare(expectations=(expect(group=group, metric="right_elsewhere"),)).expectations


def test_tasks_and_scores_are_those_of_the_evaluation():
    from lvlm.evaluate import tasks, tiers

    assert outcomes.TASKS == tasks.TASKS and set(outcomes.SUMMARISED) == set(tiers.SUMMARISED)


def test_an_unknown_group_or_path_is_an_error():
    with pytest.raises(InputError, match="'T6' is not a language group"):
        languages = Factor(name="languages", path="instruct.mix.languages", levels=("all", "T6"))
        declare(factors=(languages,), baseline={"languages": "all"})
    with pytest.raises(InputError, match=r"'instruct\.mix\.english_shares' is not a field.*english_share"):
        Factor(name="share", path="instruct.mix.english_shares", levels=(0.1, 0.5))
    with pytest.raises(InputError, match="cannot name a factor"):
        Factor(name="seed", path="seed", levels=(0, 1))


def test_a_fault_names_the_study_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from ablations import Factor\nfactor = Factor(name='x', path='model.tile', levels=(1, 2))\n")
    with pytest.raises(InputError, match=r"mine\.py: factor 'x': 'model.tile' is not a field"):
        load_study(path)
    path.write_text("a = 1\nb = c\n")
    with pytest.raises(InputError, match=r"mine\.py, line 2: NameError"):
        load_study(path)
    path.write_text("a = (\n")
    with pytest.raises(InputError, match=r"mine\.py, line 1: SyntaxError"):
        load_study(path)
    path.write_text("study = None\n")
    with pytest.raises(InputError, match="holds no `study = Study"):
        load_study(path)
    with pytest.raises(InputError, match=r"no study 'driver'.*drivers"):
        load_study("driver")


def test_an_expectation_must_compare_two_arms():
    same = Expectation(claim="nothing", metric="score", group="en", arm={"tiles": 1}, direction="higher")
    with pytest.raises(InputError, match="compares 'tiles 1' with itself"):
        declare(expectations=(same,))
    with pytest.raises(InputError, match="positive margin"):
        Expectation(claim="little", metric="score", group="en", arm={"tiles": 2}, direction="little")


def test_the_table_goes_through_parquet_and_knows_what_is_missing(tmp_path):
    write_study(tmp_path, "drivers", runs=9)
    results = load_results("drivers", home=tmp_path)
    assert results.study is not None and results.name == "drivers"
    assert len(results.finished) == 9 and len(results.missing) == 12
    assert results.arms()["seeds"].tolist() == [2, 2, 1, 1, 1, 1, 1]
    assert "12 of 21 planned runs are missing" in results._repr_html_()
    assert list(results.table.columns) == [
        "study", "arm", "seed", "languages", "english_share", "tiles",
        "run", "task", "language", "tier", "metric", "value", "n",
    ]  # fmt: skip
    assert set(results.table.loc[results.table["language"] == "en", "tier"]) == {"en"}


def test_results_are_looked_for_in_the_home_that_sweeps_uses_and_commands_to_paste_name_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LVLM_HOME", "~/work")
    assert study_folder("tiling") == Place(find_home(), "tiling").folder == tmp_path / "work/studies/tiling"
    with pytest.raises(InputError, match=f"sweeps launch tiling --home {tmp_path}; .* sweeps export tiling --home"):
        load_results("tiling", home=tmp_path)


def test_a_csv_alone_can_be_read(tmp_path):
    write_study(tmp_path, "tiling")
    load_results("tiling", home=tmp_path).table.assign(study="theirs").to_csv(tmp_path / "theirs.csv", index=False)
    results = load_results(tmp_path / "theirs.csv")
    assert results.study is None
    one, two = results.arms().index
    assert len(results.effects(baseline=one, arms=[two])) == 7
    with pytest.raises(InputError, match=r"not known here: no study of the toolkit has that name.* Name a baseline"):
        results.effects()


def test_faults_of_a_table_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"There are no results at .*sweeps launch drivers"):
        load_results("drivers", home=tmp_path)
    study = declare()
    cell = study.cells()[0]
    doubled = tidy(study, [(cell, scores(cell.arm, 0))] * 2)
    write_results(tmp_path, doubled)
    with pytest.raises(InputError, match="a second value for"):
        load_results(tmp_path)
    write_results(tmp_path, doubled.drop(columns="tier"))
    with pytest.raises(InputError, match=r"lacks the column\(s\) tier"):
        load_results(tmp_path)
    good = tidy(study, [(cell, scores(cell.arm, 0))])
    for column, wrong, said in (
        ("value", "much", "row 2: the value 'much' is no number"),
        ("value", float("inf"), "row 2: the value 'inf' is no number"),
        ("language", "xx", "row 2: 'xx' is no code of the language table; the nearest are"),
        ("language", "deu_Latn", "row 2: 'deu_Latn' is no code of the language table; write 'de'"),
    ):
        path = tmp_path / "results.csv"
        good.assign(**{column: good[column].astype(object).where(good.index != 2, wrong)}).to_csv(path, index=False)
        with pytest.raises(InputError, match=said):
            load_results(path)
