import re
import shutil

import pytest
from html_page import Page

from catalign.errors import CatalignError
from catalign.evaluation.base import Result, protocol
from catalign.reporting import answers, learning, recipe, report, scoreboard
from catalign.reporting.comparison import each, variants
from catalign.training.run import Run

SECTIONS = ["run", "catalogue", "training", "results", "retrieval", "failures"]


@pytest.fixture(scope="module")
def seeds(report_run, remake):
    return [report_run, remake(0.445, seed=1)]


@pytest.fixture(scope="module")
def other(report_run, remake):
    stages = report_run.config.model_dump(mode="json")["stages"]
    stages["align"]["objectives"]["contrastive"]["weight"] = 0.25
    return remake(0.222, name="other", stages=stages, trainer={"lr": 0.0321})


@pytest.fixture(scope="module")
def page(seeds, other, shop_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report.write_report([*seeds, other, shop_run])  # of several runs: into the working directory
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_comparison_is_one_page_that_loads_nothing(page):
    parsed = Page(page)
    assert parsed.sections == SECTIONS
    assert parsed.missing == []
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)
    assert not re.search(r"url\((?!#)|@import|<script", page)
    assert 'name="viewport"' in page
    assert len(page) < 3_000_000


def test_it_shows_every_run_its_numbers_and_where_configs_differ(page):
    text = re.sub(r"<[^>]+>", " ", page)
    for words in ("&lt;b&gt;bold &amp; fast&lt;/b&gt;", "other", "shop"):
        assert words in page
    assert ".395 ± .071" in text  # the mean of two seeds
    assert ".222" in text
    assert re.search(r"trainer\.lr\s+0\.001\s+0\.0321", text)
    assert re.search(r"stages\.align\.objectives\.contrastive\.weight\s+1\.0\s+0\.25", text)
    assert "<mark>  lr: 0.0321</mark>" in page
    assert "<mark>seed" not in page


def test_it_says_what_a_run_lacks_and_shows_each_catalogue(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "shop is left out: nothing has been evaluated in this run; catalign bench" in text
    assert "shop is left out: no stage of" in text
    assert "shop is left out: embedding store" in text
    assert "The catalogue of shop" in text
    assert "0 of 3" in text  # stages finished
    assert "image: file not found 1" in text  # why rows were left out, and which
    assert "7 s7 image file not found: 7.png" in text


def test_markup_in_titles_is_text(page):
    assert "<script>" not in page
    assert "&lt;script&gt; shirt number" in page


def test_seeds_are_one_variant_and_runs_of_another_config_are_not(seeds, other):
    found = variants([other, *seeds[::-1]])
    assert [variant.name for variant in found] == ["other", "<b>bold & fast</b>"]
    assert [run.config.seed for run in found[1].runs] == [0, 1]
    assert len({variant.colour for variant in found}) == 2


def test_the_same_config_and_seed_twice_is_two_variants_named_by_their_folders(report_run, remake):
    again = remake()
    found = variants([report_run, again])
    assert [len(variant.runs) for variant in found] == [1, 1]
    assert found[0].name != found[1].name
    assert again.path.as_posix().endswith(found[1].name)
    (board, *_) = scoreboard.result_tables(found)["boards"]
    assert [line.name for line in board["tables"][0].heads if line.kind == "run"] == [v.name for v in found]


def test_a_run_given_twice_is_refused(report_run):
    with pytest.raises(CatalignError, match="given twice"):
        variants([report_run, Run.open(report_run.path / ".." / report_run.path.name)])


def test_differences_name_keys_that_differ_and_those_that_one_lacks(report_run, remake):
    values = report_run.config.model_dump(mode="json")
    del values["stages"]["text"]["objectives"]["nsp"]
    one, other = variants([report_run, remake(name="x", seed=3, stages=values["stages"])])
    table = recipe.recipes([one, other])["differences"]
    assert set(table) == {"stages.text.objectives.nsp.name", "stages.text.objectives.nsp.weight"}
    assert table["stages.text.objectives.nsp.name"] == ["nsp", "–"]
    assert not recipe.recipes([one])["differences"]


def test_the_yaml_is_the_config_and_marks_only_what_differs(report_run):
    from omegaconf import OmegaConf

    lines = recipe.what_ran(report_run, ["data.image_size", "fusion.name"])["config"]
    values = report_run.config.model_dump(mode="json")
    assert OmegaConf.to_container(OmegaConf.create("\n".join(line for line, _ in lines))) == values
    assert [line.strip() for line, marked in lines if marked] == ["image_size:", "- 64", "- 64", "name: weighted"]


def test_each_leaves_out_what_fails_and_fails_where_all_do(report_run, other):
    def weights(run):
        if run is other:
            raise CatalignError("no weights", "train it")
        return 1

    assert each({"a": report_run, "b": other}, weights) == ({"a": 1}, ["b is left out: no weights; train it"])
    with pytest.raises(CatalignError, match="no weights"):
        each({"b": other}, weights)


def compared(report_run, tmp_path, *results):
    """Runs of one result each, of the benchmark x."""
    runs = []
    for number, result in enumerate(results):
        run = Run(tmp_path / str(number), report_run.config.model_copy(update={"name": result.row}))
        result.save(run.path / "results" / "x" / "x.json")
        runs.append(run)
    return scoreboard.result_tables(variants(runs))


def test_numbers_of_different_protocols_never_share_a_table_and_words_say_so(report_run, tmp_path):
    first = Result("x", "a", protocol("x", gallery="all"), {"t/recall@10": 0.1})
    second = Result("x", "b", protocol("x", gallery="test"), {"t/recall@10": 0.9})
    found = compared(report_run, tmp_path, first, second)
    assert [[line.name for line in board["tables"][0].lines] for board in found["boards"]] == [["a"], ["b"]]
    assert not any(board["folded"] for board in found["boards"])
    (note,) = found["notes"]
    assert f"a by {first.protocol['id']}, b by {second.protocol['id']}; they differ in: gallery" in note


def test_a_baseline_on_which_runs_agree_stands_once(report_run, tmp_path):
    first = Result("x", "a", protocol("x"), {"t/mrr": 0.5}, {"random": {"t/mrr": 0.1}, "untrained": {"t/mrr": 0.2}})
    second = Result("x", "b", protocol("x"), {"t/mrr": 0.4}, {"random": {"t/mrr": 0.1}, "untrained": {"t/mrr": 0.3}})
    ((board,), notes) = compared(report_run, tmp_path, first, second).values()
    names = [head.name for head in board["tables"][0].heads]
    assert names == ["a", "b", "random (expected)", "untrained encoders of a", "untrained encoders of b"]
    ((_, column, lines),) = board["tables"][0].turned()
    assert [line.mean(column) for line in lines] == [0.5, 0.4, 0.1, 0.2, 0.3]
    assert notes == []


def test_whiskers_are_a_deviation_of_seeds_or_what_the_result_holds(report_run, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(scoreboard.plots, "bars", lambda values, colours, label, spans: drawn.update(spans) or "<svg/>")
    first = Result(
        "x",
        "a",
        protocol("x"),
        {"t/mrr": [0.2, 0.4]},
        seeds=[0, 1],
        significance={"ours": {"t/mrr/low": [0, 0], "t/mrr/high": [1, 1]}},
    )
    second = Result(
        "x", "b", protocol("x"), {"t/mrr": 0.4}, significance={"ours": {"t/mrr/low": 0.35, "t/mrr/high": 0.5}}
    )
    third = Result("x", "c", protocol("x"), {"t/mrr": 0.4})
    compared(report_run, tmp_path, first, second, third)
    assert drawn == {"a": pytest.approx((0.3 - 0.02**0.5, 0.3 + 0.02**0.5)), "b": (0.35, 0.5)}


def test_a_benchmark_that_one_run_lacks_names_the_command(report_run, other, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(other.path, folder)
    shutil.rmtree(folder / "results" / "probe")
    found = scoreboard.result_tables(variants([report_run, Run.open(folder)]))
    assert found["notes"] == [f"other has no results of probe; make them: catalign bench probe {folder}"]


def test_runs_are_asked_the_same_queries_side_by_side(report_run, other, shop_run):
    for grid in answers.retrieval(variants([report_run, other]))["grids"]:
        for entry in grid["examples"] + grid["hardest"]:
            mine, theirs = entry["strips"]
            assert mine["name"] == "<b>bold & fast</b>"
            assert {**mine, "name": "other"} == theirs  # the same embeddings answer the same


def test_curves_of_all_runs_are_in_one_axis_per_stage(report_run, other, monkeypatch):
    drawn = []
    monkeypatch.setattr(learning.plots, "panel", lambda curves, colours, label: drawn.append(curves) or "<svg/>")
    found = learning.race(variants([report_run, other]))
    assert [stage["name"] for stage in found["stages"]] == list(report_run.config.stages)
    assert all({run for run, _ in curves} == {"<b>bold & fast</b>", "other"} for curves in drawn)
    assert all(curve.steps[0] == 0 for curves in drawn for curve in curves.values())
    assert any("very few dimensions" in note for note in found["notes"])
