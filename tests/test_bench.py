"""``catalign bench``: one protocol or all of them, with options, on a tiny finished run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from catalign import registry
from catalign.artifacts import read_json, write_json
from catalign.bench import every_protocol, set_options, show
from catalign.cli import main
from catalign.errors import CatalignError
from catalign.evaluation.base import Result, Skipped, protocol
from catalign.training.run import Run


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy, which results are written into."""
    return Run.open(shutil.copytree(tiny_run.path, tmp_path / "run"))


@pytest.fixture
def protocols(monkeypatch):
    """Three protocols in place of the real ones: one that measures, one whose data are absent, one that fails."""

    def counting(context, *, share: float = 1.0):
        return [
            Result("counting", "row", protocol("counting"), {"n": len(context.catalogue) * share}, {"random": {"n": 0}})
        ]

    def absent(context):
        raise Skipped("absent needs a file", "put it under data.root")

    def broken(context):
        raise CatalignError("the file is broken", "mend line 3")

    known = {"absent": absent, "broken": broken, "counting": counting}
    monkeypatch.setitem(registry._components, "protocol", known)
    monkeypatch.setattr(registry, "_discover", lambda kind: None)
    monkeypatch.setattr("catalign.bench.every_protocol", lambda run: list(known))
    return known


def test_all_goes_on_where_one_is_skipped_and_fails_only_in_the_end(run, protocols, tmp_path, capsys):
    assert main(["bench", "all", str(run.path), "-o", str(tmp_path / "results")]) == 2
    captured = capsys.readouterr()
    assert Result.load(tmp_path / "results" / "counting" / "row.json").mean("n") == len(run.catalogue())
    assert "measured 1 of 3 protocols: counting" in captured.err
    summary = captured.err.partition("measured")[2]
    assert "skipped absent: absent needs a file\n  -> put it under data.root" in summary
    assert "failed broken: the file is broken\n  -> mend line 3" in summary
    assert "catalign: failed: broken" in captured.err
    del protocols["broken"]
    assert main(["bench", "all", str(run.path)]) == 0


def test_options_are_given_and_checked(run, protocols, tmp_path, capsys):
    words = ["bench", "counting", str(run.path), "evaluation.counting.share=0.5", "-o", str(tmp_path / "results")]
    assert main(words) == 0
    result = Result.load(tmp_path / "results" / "row.json")
    assert result.mean("n") == len(run.catalogue()) / 2
    assert result.config["evaluation"]["counting"] == {"name": "counting", "share": 0.5}
    assert "counting" not in Run.open(run.path).config.evaluation
    assert main([*words[:3], *words[4:], "evaluation.counting.share=0.25"]) == 0  # words may come after an option
    assert Result.load(tmp_path / "results" / "row.json").mean("n") == len(run.catalogue()) / 4
    for override, says in (("counting.shar=1", "did you mean 'share'"), ("countin.share=1", "did you mean 'counting'")):
        assert main([*words[:3], f"evaluation.{override}"]) == 2
        assert says in capsys.readouterr().err
    assert main(["bench", "counting", "evaluation.counting.share=1"]) == 2
    assert "no run is named" in capsys.readouterr().err


@pytest.fixture
def elsewhere(run, protocols, tmp_path):
    """The result of seed 5 from another machine, whose run is not here."""
    assert main(["bench", "counting", str(run.path), "-o", str(tmp_path / "elsewhere")]) == 0
    path = tmp_path / "elsewhere" / "row.json"
    form = read_json(path)
    form["config"]["seed"] = 5
    write_json(path, form | {"seeds": [5], "hardware": form["hardware"] | {"gpu": "H100"}, "wall_clock_s": 60.0})
    return path


def test_a_result_from_elsewhere_is_one_more_seed(run, elsewhere, tmp_path, capsys):
    here = run.config.seed
    assert main(["bench", "counting", str(run.path), str(elsewhere), "-o", str(tmp_path / "both")]) == 0
    both = Result.load(tmp_path / "both" / "row.json")
    assert both.seeds == [here, 5]
    assert both.metrics["n"] == [len(run.catalogue())] * 2
    assert both.hardware["gpu"] == "None, H100"
    assert main(["bench", "counting", str(tmp_path / "both" / "row.json")]) == 0
    assert "2 seed(s)" in capsys.readouterr().out


def test_a_result_from_elsewhere_must_fit(run, elsewhere, protocols, tmp_path, capsys):
    def says(*words: str) -> str:
        assert main(["bench", *words, "-o", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "is a result of counting, not of all" in says("all", str(run.path), str(elsewhere))
    form = read_json(elsewhere)
    write_json(elsewhere, form | {"seeds": [run.config.seed]})
    assert f"a result of seed {run.config.seed} already" in says("counting", str(run.path), str(elsewhere))
    write_json(elsewhere, form | {"row": "other"})
    assert "name the result files of all rows" in says("counting", str(run.path), str(elsewhere))
    elsewhere.write_text("{}")
    assert "not a result file" in says("counting", str(run.path), str(elsewhere))
    assert "absent.json" in says("counting", str(tmp_path / "absent.json"))
    assert not (tmp_path / "out").exists()


def test_other_options_leave_the_runs_own_result(run, protocols):
    config = {**run.config.model_dump(mode="json"), "evaluation": {"counting": {"name": "counting"}}}
    write_json(run.path / "config.json", config)
    assert main(["bench", "counting", str(run.path)]) == 0
    assert main(["bench", "counting", str(run.path), "evaluation.counting.share=0.5"]) == 0
    (other,) = (run.path / "bench").rglob("*.json")
    own = Result.load(run.path / "results" / "counting" / "row.json")
    assert own.mean("n") == 2 * Result.load(other).mean("n") == len(run.catalogue())


def test_a_protocol_that_the_config_lacks_has_the_options_of_its_yaml(run, protocols):
    def sequential(context, *, split: str = "val", negatives: int | None = None):
        return [Result("sampled", "row", protocol("sampled"), {"n": negatives}, {"random": {"n": 0}})]

    protocols["sequential"] = sequential
    for words, where in (([], "results/sequential_99"), (["evaluation.sequential_99.negatives=9"], "bench/*/*")):
        assert main(["bench", "sequential_99", str(run.path), *words]) == 0
        (path,) = run.path.glob(f"{where}/row.json")
        assert Result.load(path).mean("n") == (9 if words else 99)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("evaluation.counting=3", "'evaluation.counting=3' is no option"),
        ("evaluation.counting.share=[1", "lists as [a, b]"),
        ("evaluation.counting.share", "'evaluation.counting.share' is no option"),
        ("share=1", "'share=1' is neither a run nor an option"),
    ],
)
def test_words_that_are_no_options_are_explained(run, protocols, capsys, word, says):
    assert main(["bench", "counting", str(run.path), word]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("width", [40, 60, 61, 62, 63, 64, 65, 80, 120])
def test_a_wide_table_is_printed_in_parts(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    baselines = {f"baseline_{number}": {"hr@10": number / 10} for number in range(6)}
    show(Result("counting", "row", protocol("counting"), {"hr@10": 0.9876}, baselines))
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines()[1:])) <= width
    for word in (*baselines, *(f"{number / 10:.4f}" for number in range(6))):
        assert told.count(word) == 1, word
    assert told.count("0.9876") == told.count("ours") > (width < 90)  # ours stands in every part


def test_options_of_the_run_stay(run):
    before = run.config.evaluation["retrieval"].options
    set_options(run, ["evaluation.retrieval.split=val", "evaluation.retrieval.ks=[1, 3]"])
    assert run.config.evaluation["retrieval"].options == {**before, "split": "val", "ks": [1, 3]}
    assert run.config.stages == Run.open(run.path).config.stages


def test_an_image_folder_is_classified_as_the_readme_says(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("catalign.evaluation.significance.DRAWS", 99)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, level in (("dark", 40), ("light", 200)):
            (tmp_path / "shades" / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = (level + rng.integers(0, 20, (16, 16, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "shades" / split / name / f"{number}.png")
    folder = f"evaluation.images.folder={tmp_path / 'shades'}"
    assert main(["bench", "images", str(run.path), folder, "-o", str(tmp_path / "results")]) == 0
    (path,) = (tmp_path / "results").iterdir()
    result = Result.load(path)
    assert result.baselines.keys() == {"majority", "pixels", "untrained"}
    assert result.mean("linear/accuracy") == 1.0
    assert result.protocol["name"] == "images-shades"


def test_every_protocol_measures_or_says_what_it_needs(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("catalign.evaluation.significance.DRAWS", 99)
    assert main(["bench", "all", str(run.path), "-o", str(tmp_path / "results")]) == 0
    summary = capsys.readouterr().err.partition("measured")[2]
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"retrieval", "probe", "anomaly"} <= written
    skipped = summary.split("skipped ")[1:]
    assert {part.partition(":")[0] for part in skipped} == set(every_protocol(run)) - written
    assert {"kagl", "images", "search_ranking"} <= set(every_protocol(run)) - written
