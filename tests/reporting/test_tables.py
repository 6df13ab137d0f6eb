from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalign.config import config_folder
from catalign.errors import CatalignError
from catalign.evaluation.base import Result, merge, protocol
from catalign.reporting.readmes import update_file, write_tables
from catalign.reporting.specs import published_rows, tables_of
from catalign.reporting.tables import ablation_table, comparison_table, grid_table, ranking_table

COLUMNS = {"R@10": "t2i/recall@10", "median rank": "t2i/median_rank", "unused": "other/recall@10"}
PROTOCOL = protocol("toy", "published", k=10)


def result(row: str = "ours", seeds: tuple[int, ...] = (1, 2), record=PROTOCOL, shift: float = 0.0, **given) -> Result:
    parts = []
    for seed in seeds:
        metrics = {"t2i/recall@10": 0.2 + 0.1 * seed + shift, "t2i/median_rank": 30.0}
        baselines = {
            "random": {"t2i/recall@10": 0.01, "t2i/median_rank": 500.0},
            "untrained": {"t2i/recall@10": 0.02 + shift},
        }
        hardware = {"cpu": "Some CPU", "cores": 2, "gpu": None}
        details = {"training": "toy train split", "parameters": 12_300_000}
        parts.append(
            Result("toy", row, record, metrics, baselines, details, [seed], hardware, wall_clock_s=600, **given)
        )
    return merge(parts)


def published(identity: str = PROTOCOL["id"]) -> dict:
    row = {"row": "Big|Model", "training": "web", "parameters": None, "source": "s", "metrics": {"t2i/recall@10": 0.4}}
    return {"benchmark": "toy", "protocol": identity, "source": "paper, table 1", "rows": [row]}


GOLDEN = f"""\
| model | trained on | parameters | R@10 | median rank |
|---|---:|---:|---:|---:|
| Big\\|Model (published) | web | – | **0.400** | – |
| ours | toy train split | 12.3 M | 0.350 ± 0.071 | **30.0** |
| random (expected) | nothing | – | 0.010 | 500.0 |
| untrained encoders | nothing | – | 0.020 | – |

Protocol `{PROTOCOL["id"]}`. Published rows: paper, table 1.

ours: 2 seeds, 10 min each on Some CPU, 2 cores.
"""


def test_golden_markdown():
    assert ranking_table([result()], published(), COLUMNS).markdown() == GOLDEN


def test_golden_latex():
    latex = ranking_table([result("my_run")], published(), {"R@10": "t2i/recall@10"}).latex()
    lines = latex.splitlines()
    assert lines[2:6] == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"model & trained on & parameters & R@10 \\",
        r"\midrule",
    ]
    assert lines[6:] == [
        r"Big|Model (published) & web & -- & \textbf{0.400} \\",
        r"\midrule",
        r"my\_run & toy train split & 12.3 M & 0.350 $\pm$ 0.071 \\",
        r"\midrule",
        r"random (expected) & nothing & -- & 0.010 \\",
        r"untrained encoders & nothing & -- & 0.020 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_digits_are_chosen_and_rows_without_a_column_left_out():
    table = ranking_table([result(seeds=(1,))], published(), {"R@10": "t2i/recall@10"}, digits=4)
    assert [cells[-1] for cells in table.cells] == ["0.4000", "0.3000", "0.0100", "0.0200"]
    table = ranking_table([result(seeds=(1,))], published(), {"rank": "t2i/median_rank"})
    assert [cells[0] for cells in table.cells] == ["ours", "random (expected)"]
    assert "paper" not in "".join(table.notes)
    assert ranking_table([], published(), {"no": "x/y"}).markdown() == "No results yet.\n"


def test_baselines_say_what_they_are_fitted_on():
    metrics = {"toy/hr@10": 0.5}
    ours = Result(
        "toy", "ours", PROTOCOL, metrics, {"popularity": metrics, "popularity_leaking": metrics, "x": metrics}
    )
    table = ranking_table([ours], None, {"HR@10": "toy/hr@10"})
    assert [cells[1] for cells in table.cells] == ["–", "train events", "all events, test too", "nothing"]


def test_equal_rounded_values_are_all_best():
    rows = [result("a", (1,)), result("b", (1,), shift=0.0001)]
    text = ranking_table(rows, None, {"R@10": "t2i/recall@10"}).markdown()
    assert text.count("**0.300**") == 2


def test_a_small_p_is_no_merit():
    rows = [Result("toy", row, PROTOCOL, {"hr/minus/tfidf/p": p}, {}) for row, p in (("worse", 0.001), ("level", 0.9))]
    assert "**" not in ranking_table(rows, None, {"p": "hr/minus/tfidf/p"}).markdown()


def test_baselines_that_differ_say_whose_they_are():
    text = ranking_table([result("a"), result("b", shift=0.1)], None, COLUMNS).markdown()
    assert "| untrained encoders of a |" in text
    assert "| untrained encoders of b |" in text
    assert text.count("random (expected)") == 1


def test_mixed_protocols_are_refused():
    other = protocol("toy", "published", k=5)
    with pytest.raises(CatalignError, match="cannot stand in one column"):
        ranking_table([result("a"), result("b", record=other)], None, COLUMNS)
    with pytest.raises(CatalignError, match="cannot stand in one column"):
        ranking_table([result("a")], published("toy-published-0"), COLUMNS)


def test_comparison_gives_each_protocol_a_column():
    image, text = protocol("toy", "image", k=10), protocol("toy", "text", k=10)
    results = [result("ours-text", (1,), text), result("ours-image", (1,), image, shift=0.1)]
    table = comparison_table(
        results, {"toy-image": "photos", "toy-text": "titles"}, {"R@10": "t2i/recall@10", "no": "x/y"}
    )
    assert table.header == ["metric", "photos (ours-image)", "titles (ours-text)"]
    assert table.cells == [["R@10", "0.400", "0.300"], ["protocol", f"`{image['id']}`", f"`{text['id']}`"]]


def test_grid_has_a_line_per_condition():
    record = protocol("toy", "grid", k=10)
    results = []
    for row, shift in (("one", 0.0), ("two", 0.5)):
        metrics = {f"t2i/{kind}/{metric}": shift + n / 10 for n, kind in enumerate("ab") for metric in ("r", "m")}
        results.append(Result("toy", row, record, metrics))
    rows, columns = {"all": "a", "half": "b", "none": "c"}, {"R": "t2i/*/r", "M": "t2i/*/m", "other": "i2t/*/r"}
    table = grid_table(results[:1], rows, columns)
    assert table.header == ["", "R", "M", "other"]
    numbers = [["all", "0.000", "0.000", "–"], ["half", "0.100", "0.100", "–"], ["none", "–", "–", "–"]]
    assert table.cells == numbers
    assert record["id"] in table.notes[0]
    both = grid_table(results, rows, columns)
    assert both.cells[:3] == [[f"one, {title}", *cells] for title, *cells in numbers]
    assert both.cells[4] == ["two, half", "0.600", "0.600", "–"]
    assert both.rules == {3}
    assert grid_table([], rows, columns).markdown() == "No results yet.\n"
    with pytest.raises(CatalignError, match="cannot stand in one column"):
        grid_table([results[0], result()], rows, columns)


def test_ablation_has_a_line_per_label_and_columns_of_several_protocols():
    other = protocol("toy", "val", k=10)
    results = [result("a"), result("b", shift=0.1), result("a", record=other, shift=0.5), result("unlabelled")]
    columns = {"val": ("toy-val", "t2i/recall@10"), "test": ("toy-published", "t2i/recall@10")}
    table = ablation_table(results, {"b": "with", "a": "without", "absent": "never run"}, columns)
    assert table.header == ["", "val", "test", "seeds", "minutes"]
    assert table.cells == [
        ["with", "–", "0.450 ± 0.071", "2", "10"],
        ["without", "0.850 ± 0.071", "0.350 ± 0.071", "2", "10"],
    ]
    assert table.best == {(0, 2)}
    assert ablation_table([], {"a": ""}, columns).cells == []
    with pytest.raises(CatalignError, match="different protocols"):
        ablation_table([*results, result("b", record=protocol("toy", "val", k=5))], {"a": "", "b": ""}, columns)


def test_committed_missing_tables_can_be_made():
    tables = tables_of(config_folder().parent / "benchmarks" / "missing")
    assert set(tables) == {"missing", "missing-baselines"}
    assert [row[0].split(", ")[-1] for row in tables["missing"].cells][:2] == ["nothing missing", "25% without photo"]
    for table in tables.values():
        assert all(any(cells[column] != "–" for cells in table.cells) for column in range(1, len(table.header)))


@pytest.fixture
def checkout(tmp_path) -> Path:
    folder = tmp_path / "benchmarks" / "toy"
    (folder / "results").mkdir(parents=True)
    (folder / "spec.yaml").write_text(
        "benchmark: toy\ntables:\n  toy:\n    protocol: toy-published\n    columns: {R@10: t2i/recall@10}\n"
        "  toy-documents:\n    protocols: {toy-published: sum}\n    metrics: {R@10: t2i/recall@10}\n"
    )
    (folder / "published.json").write_text(json.dumps(published()))
    (folder / "README.md").write_text("# Toy\n<!-- table:toy-documents -->\nold\n<!-- /table -->\nend\n")
    (tmp_path / "README.md").write_text(
        "a\n<!-- table:toy -->\n<!-- /table -->\nb\n<!-- table:toy -->\nx\n<!-- /table -->\nc\n"
    )
    return tmp_path


def test_check_fails_until_the_tables_are_written(checkout, capsys):
    assert write_tables(check=True, root=checkout) == 1
    assert "README.md: differs" in capsys.readouterr().out
    assert write_tables(root=checkout) == 0
    text = (checkout / "README.md").read_text()
    assert text.startswith("a\n<!-- table:toy -->\n| model |")
    assert text.count("Big\\|Model (published)") == 2
    assert text.endswith("<!-- /table -->\nc\n")
    assert "No results yet." in (checkout / "benchmarks/toy/README.md").read_text()
    assert write_tables(check=True, root=checkout) == 0
    result().save(checkout / "benchmarks/toy/results/ours.json")
    assert write_tables(check=True, root=checkout) == 1
    write_tables(root=checkout)
    assert "0.350 ± 0.071" in (checkout / "README.md").read_text()
    assert "old" not in (checkout / "benchmarks/toy/README.md").read_text()


def test_an_edited_number_is_found(checkout):
    write_tables(root=checkout)
    path = checkout / "README.md"
    path.write_text(path.read_text().replace("0.400", "0.500"))
    assert write_tables(check=True, root=checkout) == 1


def test_marker_of_no_table(checkout):
    (checkout / "README.md").write_text("<!-- table:toi -->\n<!-- /table -->\n")
    with pytest.raises(CatalignError, match="did you mean 'toy'"):
        write_tables(root=checkout)


def test_no_checkout(tmp_path):
    with pytest.raises(CatalignError, match="no benchmarks"):
        write_tables(root=tmp_path)


def test_update_leaves_other_tables_alone(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("<!-- table:a -->\n1\n<!-- /table -->\n<!-- table:b -->\n2\n<!-- /table -->\n")
    assert update_file(path, "b", "new\n")
    assert path.read_text() == "<!-- table:a -->\n1\n<!-- /table -->\n<!-- table:b -->\nnew\n<!-- /table -->\n"
    assert not update_file(path, "b", "new\n", check=True)


def test_published_rows_stand_only_beside_their_protocol(checkout):
    assert [row["row"] for row in published_rows("toy", PROTOCOL["id"], checkout)] == ["Big|Model"]
    assert published_rows("toy", "toy-other-1", checkout) == []
    assert published_rows("none", PROTOCOL["id"], checkout) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tables: [", "spec.yaml cannot be read"),
        ("benchmark: toy", "no mapping 'tables'"),
        ("tables: {toy: {protocol: toy}}", "tables.toy asks for nothing"),
    ],
)
def test_a_broken_spec_is_named(checkout, text, message):
    folder = checkout / "benchmarks" / "toy"
    (folder / "spec.yaml").write_text(text)
    (folder / "published.json").unlink()
    with pytest.raises(CatalignError, match=message):
        tables_of(folder)


def test_published_rows_of_several_protocols(checkout):
    """One file for several tables; each table shows the rows of its own protocol."""
    other = protocol("toy", "other", k=5)
    folder = checkout / "benchmarks" / "toy"
    (folder / "published.json").write_text(json.dumps([published(), {**published(other["id"]), "source": "table 2"}]))
    with pytest.raises(CatalignError, match=r"protocol in .*published.json: 'toy-other'"):
        tables_of(folder)
    with (folder / "spec.yaml").open("a") as spec:
        spec.write("  second:\n    protocol: toy-other\n    digits: 2\n    columns: {R@10: t2i/recall@10}\n")
    result("theirs", record=other).save(folder / "results" / "theirs.json")
    tables = tables_of(folder)
    assert [cells[0] for cells in tables["toy"].cells] == ["Big|Model (published)"]
    assert tables["second"].cells[:2] == [
        ["Big|Model (published)", "web", "–", "0.40"],
        ["theirs", "toy train split", "12.3 M", "0.35 ± 0.07"],
    ]
    assert "table 2" in tables["second"].notes[0]
    assert len(published_rows("toy", other["id"], checkout)) == 1
    result("ours", record=protocol("toy", "other", k=7)).save(folder / "results" / "theirs.json")
    with pytest.raises(CatalignError, match="cannot stand in one column"):
        tables_of(folder)


def test_committed_published_kagl_rows():
    """Values of the published table that the data's description quotes, and averages that add up."""
    folder = config_folder().parent / "benchmarks" / "kagl"
    rows = {row["row"]: row for row in json.loads((folder / "published.json").read_text())["rows"]}
    assert len(rows) == 6
    assert rows["Marqo-FashionSigLIP"]["metrics"]["text-to-image/recall@10"] == 0.489
    assert rows["ViT-B-16-SigLIP-webli"]["metrics"]["category-to-product/precision@10"] == 0.700
    assert rows["OpenFashionCLIP"]["metrics"]["usage-to-product/precision@10"] == 0.250
    for row in rows.values():
        assert row["source"]
        tasks = {key.split("/")[0] for key in row["metrics"]}
        assert len(tasks) == 7
        for task in tasks:
            kind = "recall" if task == "text-to-image" else "precision"
            pair = [row["metrics"][f"{task}/{kind}@{k}"] for k in (1, 10)]
            assert row["metrics"][f"{task}/avg_{kind}"] == pytest.approx(sum(pair) / 2, abs=0.0011)


def test_committed_kagl_tables_can_be_made():
    tables = tables_of(config_folder().parent / "benchmarks" / "kagl")
    assert set(tables) == {"kagl", "kagl-documents"}
    assert len(tables["kagl"].header) == len(set(tables["kagl"].header))
