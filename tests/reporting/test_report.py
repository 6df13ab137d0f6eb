import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from html_page import Page

from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion.concat import Concat
from catalign.evaluation.base import Result, protocol
from catalign.reporting import answers, learning, panels, recipe, report, scoreboard, svg
from catalign.reporting.comparison import Variant, variants
from catalign.training.run import Run

OWN = ["inpainting", "words", "map", "index"]
SECTIONS = ["run", "catalogue", "training", "monitors", "results", "retrieval", "failures", *OWN]


@pytest.fixture(scope="module")
def page(report_run, tmp_path_factory):
    path = report.write_report([report_run], tmp_path_factory.mktemp("page") / "report.html")
    return path.read_text(encoding="utf-8")


def test_every_section_is_there_and_complete(page):
    parsed = Page(page)
    assert parsed.sections == SECTIONS
    assert parsed.missing == []


def test_the_page_loads_nothing_from_a_network(page):
    assert all(address.startswith(("data:", "#")) for address in Page(page).addresses)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page


def test_all_text_is_escaped(page, report_run):
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold &amp; fast&lt;/b&gt;" in page


def test_it_reads_well_on_a_phone_and_in_the_dark(page):
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_numbers_of_the_run_are_shown(page):
    for number in (".345", ".987", "1.23 M", "61 s", "1,234"):
        assert number in page, number
    assert "RankMe" in page
    assert "very few dimensions" in page  # a RankMe of 1.5 is a warning


def test_an_empty_run_says_what_is_absent_and_what_makes_it(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/catalign", "run", "+plugins=[mine]", "name=a run"])
    run = Run.create(tiny_config(tmp_path / "run", "data.source.products=120"))
    text = report.write_report([run]).read_text(encoding="utf-8")
    parsed = Page(text)
    assert (run.path / "report.html").is_file()
    assert parsed.sections == SECTIONS
    assert parsed.missing == ["training", "monitors", "results", "retrieval", "failures", *OWN]
    for command in (
        "catalign run &#39;+plugins=[mine]&#39; &#39;name=a run&#39;",
        "catalign embed",
        "catalign index",
        "catalign bench retrieval",
    ):
        assert command in text, command
    assert "could not be made" not in text
    assert "then fused" not in text


def test_a_damaged_part_costs_only_its_own_section(report_run, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(report_run.path, folder)
    (folder / "stages" / "text" / "metrics.json").write_text("{")
    (folder / "index_report.json").write_text('{"recall": "no number"}')
    (folder / "results" / "broken.json").write_text("{")
    text = report.write_report([Run.open(folder)]).read_text(encoding="utf-8")
    assert Page(text).missing == ["training", "monitors", "words", "index"]  # the text stage is refused as altered
    assert "broken.json is left out" in text
    assert "metrics.json is not valid JSON" in text
    assert "section 'index' could not be made" in caplog.text


def test_hits_are_framed_and_a_miss_shows_the_right_product(report_run, page):
    grids = answers.retrieval(variants([report_run]))["grids"]
    catalogue, test = report_run.catalogue(), set(report_run.catalogue().rows("test").tolist())
    assert [grid["title"] for grid in grids] == ["Text → image", "Image → product"]
    entries = [entry for grid in grids for entry in grid["examples"] + grid["hardest"]]
    framed = 0
    for entry in entries:
        (strip,) = entry["strips"]
        assert {catalogue.row(product["id"]) for product in [entry["query"], *strip["answers"]]} <= test
        correct = [answer["correct"] for answer in strip["answers"]]
        framed += sum(correct)
        assert any(correct) == (strip["rank"] <= answers.SHOWN) == (strip["right"] is None)
    assert page.count('class="product correct"') == framed > 0


def test_the_hardest_queries_are_those_of_the_worst_rank(report_run):
    catalogue, searches = answers._opened(report_run)
    for grid in answers.retrieval(variants([report_run]))["grids"]:
        search = searches[grid["title"]]
        ranks = sorted(of.rank for of in answers.answer(search, search.query_rows, catalogue.groups).values())
        shown = [entry["strips"][0]["rank"] for entry in grid["hardest"]]
        assert shown == [rank for rank in ranks[::-1] if rank > answers.SHOWN][: answers.HARDEST]
        assert shown


def test_ranks_agree_with_a_plain_count():
    rng = np.random.default_rng(0)
    groups = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    rows = np.arange(8)
    vectors = rng.integers(-2, 3, size=(8, 3)).astype(float)  # small integers: many ties
    search = answers.Search("", "", vectors.__getitem__, rows, vectors, rows, itself=False, pictured=True)
    ranks = {row: answer.rank for row, answer in answers.answer(search, rows, groups).items()}
    assert set(ranks) == {0, 1, 2, 3}  # the others are alone in their group
    for query, rank in ranks.items():
        scores = [(-float(vectors[query] @ vectors[other]), other) for other in rows if other != query]
        order = [other for _, other in sorted(scores)]
        assert rank == 1 + next(place for place, other in enumerate(order) if groups[other] == groups[query])


def test_the_map_is_coloured_by_the_attribute_that_explains_it(report_run):
    catalogue = report_run.catalogue()
    rows = np.arange(len(catalogue))
    names, codes = np.unique(catalogue.attributes["category"], return_inverse=True)
    vectors = np.eye(len(names))[codes] + 0.01 * np.random.default_rng(0).normal(size=(len(rows), len(names)))
    name, values, purity = panels._telling_attribute(catalogue, rows, vectors)
    assert name == "category"
    assert purity > 0.8  # some categories have fewer than eleven products
    assert values == catalogue.attributes["category"].tolist()


def test_inpainting_shows_three_pictures_per_product(report_run):
    (panel,) = learning.inpainting(report_run, report_run.catalogue())
    assert (panel["stage"], panel["objective"]) == ("image", "inpainting")
    for triple in panel["rows"]:
        assert list(triple) == ["masked", "reconstructed", "original"]
        assert len(set(triple.values())) == 3
        assert all(picture.startswith("data:image/jpeg;base64,") for picture in triple.values())


def test_a_photo_asks_a_fusion_that_has_a_space_of_its_own(report_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(report_run.path, folder)
    store = EmbeddingStore.open(folder / "embeddings")
    Concat().fit({name: store[name] for name in store.modalities}).save(folder / "fusion")
    grids = answers.retrieval(variants([Run.open(folder)]))["grids"]
    assert [grid["title"] for grid in grids] == ["Text → image", "Image → product"]


def test_masked_words_come_from_test_titles(report_run):
    catalogue = report_run.catalogue()
    (panel,) = learning.words(report_run, catalogue)
    titles = {
        catalogue.vocabulary.tokenizer.decode(ids.tolist())
        for ids in catalogue.vocabulary.encode([catalogue.text()[int(row)] for row in catalogue.rows("test")])
    }
    for row in panel["rows"]:
        assert " ".join(filter(None, [row["before"], row["word"], row["after"]])).replace(" ", "") in {
            title.replace(" ", "") for title in titles
        }
        shares = [share for _, share in row["guesses"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1


def boards_of(path, *results):
    for result in results:
        result.save(path / "results" / result.benchmark / f"{result.row}.json")
    run = SimpleNamespace(path=path, config=SimpleNamespace(name=""))
    return scoreboard.result_tables([Variant("", [run], svg.PALETTE[0])])["boards"]


def test_numbers_of_different_protocols_never_share_a_table(tmp_path):
    first = Result("kagl", "a", protocol("kagl", gallery="all"), {"t/recall@10": 0.1})
    second = Result("kagl", "b", protocol("kagl", gallery="test"), {"t/recall@10": 0.9})
    boards = boards_of(tmp_path, first, second)
    assert [[line.name for line in board["tables"][0].lines] for board in boards] == [["a"], ["b"]]


def test_the_best_of_run_and_baselines_is_marked_in_the_right_direction(tmp_path):
    metrics = {"t/recall@10": 0.3, "t/median_rank": 9.0, "t/temperature": 0.1}
    baseline = {"t/recall@10": 0.2, "t/median_rank": 4.0, "t/temperature": 0.2}
    (board,) = boards_of(tmp_path, Result("x", "ours", protocol("x"), metrics, {"random": baseline}))
    ours, random = board["tables"][0].lines
    assert (ours.kind, random.kind) == ("run", "baseline")
    assert ours.best == {"recall@10"}
    assert random.best == {"median_rank"}


def test_several_seeds_show_their_spread(tmp_path):
    result = Result("x", "ours", protocol("x"), {"t/recall@10": [0.2, 0.4]}, seeds=[1, 2])
    (board,) = boards_of(tmp_path, result)
    assert board["tables"][0].lines[0].text("recall@10") == ".300 ± .141"


def test_published_rows_stand_beside_results_of_their_protocol_only(tmp_path, monkeypatch):
    known = protocol("kagl", "published")
    rows = [
        {"row": "FashionCLIP", "metrics": {"text-to-image/recall@10": 0.489, "other/mrr": 0.5}, "source": "a paper"}
    ]
    monkeypatch.setattr(scoreboard, "published_rows", lambda benchmark, id: rows if id == known["id"] else [])
    ours = Result("kagl", "ours", known, {"text-to-image/recall@10": 0.3}, {"random": {"text-to-image/recall@10": 0.0}})
    other = Result("kagl", "ours-text", protocol("kagl", "text"), {"text-to-image/recall@10": 0.3})
    first, second = boards_of(tmp_path, ours, other)
    assert [line.name for line in first["tables"][0].lines if line.kind == "published"] == ["FashionCLIP"]
    assert (first["sources"], second["sources"]) == (["a paper"], [])
    assert not any(line.kind == "published" for line in second["tables"][0].lines)
    assert scoreboard.headline([first, second]) == [
        (".300", "kagl: text-to-image, recall@10", "best trivial baseline .000")
    ]


@pytest.mark.parametrize(("seconds", "text"), [(41, "41 s"), (120, "2 min"), (3900, "1 h 05"), (None, "not recorded")])
def test_duration(seconds, text):
    assert recipe.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (1234567, "1.23 M"), (66_000, "66 k")])
def test_count(number, text):
    assert recipe.count(number) == text
