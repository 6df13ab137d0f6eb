import subprocess
import sys
import time

import pytest

from catalign.cli import main
from catalign.errors import CatalignError


def run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_answers_in_under_a_second_and_loads_nothing_heavy():
    program = "import sys; from catalign.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "print('HEAVY', {'torch', 'hydra', 'faiss', 'transformers'} & set(sys.modules))"
    began = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert time.perf_counter() - began < 1
    assert "HEAVY set()" in answer.stdout
    for command in ("run", "pretrain", "align", "embed", "index", "search", "bench", "export", "list", "data", "demo"):
        assert f"\n    {command} " in answer.stdout


def test_a_sweep_is_written_as_the_readme_says(monkeypatch):
    seen = {}
    monkeypatch.setattr("catalign.commands._sweep", lambda overrides: seen.setdefault("overrides", overrides))
    assert main(["run", "experiment=quickstart", "-m", "seed=1,2", "name=x"]) == 0
    assert seen["overrides"] == ["experiment=quickstart", "seed=1,2", "name=x"]
    with pytest.raises(SystemExit):
        main(["run", "experiment=quickstart", "--nosuch"])


def test_a_sweep_runs_every_seed(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr("catalign.pipeline.run_experiment", lambda config: ran.append((config.name, config.seed)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["catalign"])
    assert main(["run", "experiment=quickstart", "-m", "seed=1,2"]) == 0
    assert ran == [("quickstart", 1), ("quickstart", 2)]


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A CSV and a folder of photos, as a user may have them: other column names, a missing and a broken photo."""
    import csv
    import random

    from PIL import Image

    folder, colours = (
        tmp_path_factory.mktemp("shop"),
        {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 200)},
    )
    (folder / "photos").mkdir()
    draw = random.Random(0)
    with (folder / "products.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sku", "name", "description", "photo", "brand"])
        for number in range(120):
            colour, kind = draw.choice(list(colours)), draw.choice(["shirt", "bag", "shoe"])
            photo = f"{number}.png" if number != 3 else ""
            if photo:
                size = 20 + draw.randrange(20)
                Image.new("RGB", (size, 40), colours[colour]).save(folder / "photos" / photo)
            text = f"{colour} {kind} number {number}"
            rows.writerow([f"s{number}", text, f"A {text}. It is {colour}. Wear it well.", photo, draw.choice("AB")])
    (folder / "photos" / "7.png").write_bytes(b"no image")
    return folder


OWN = [
    "experiment=own",
    "encoder/text=tiny",
    "encoder/image=tiny",
    "trainer=debug",
    "data.vocabulary_size=300",
    "data.workers=1",
    "data.split.test=0.2",
    "data.split.val=0.2",
    "stages.text.trainer={max_steps: 2, batch_size: 16}",
    "stages.image.trainer={max_steps: 2, batch_size: 16}",
    "stages.align.trainer={max_steps: 2, batch_size: 16}",
]


@pytest.mark.parametrize("source", ["table", "folder"])
def test_your_own_catalogue_as_the_readme_says(shop, tmp_path, capsys, source):
    table = [
        f"data.source.path={shop / 'products.csv'}",
        f"data.source.images={shop / 'photos'}",
        "data.columns.id=sku",
        "data.columns.image=photo",
        "data.columns.text={name: 0.7, description: 0.3}",
        "data.columns.attributes=[brand]",
    ]
    given = table if source == "table" else [f"data.source.path={shop / 'photos'}"]
    places = [f"output={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}"]
    if source == "folder":  # photos named by numbers: no word to learn from
        assert main(["run", *OWN, f"data={source}", *given, *places]) == 2
        assert "~stages.text ~stages.align" in capsys.readouterr().err
        given += ["~stages.text", "~stages.align"]
    chosen = [
        override for override in OWN if source == "table" or (".text." not in override and ".align." not in override)
    ]
    assert main(["run", *chosen, f"data={source}", *given, *places]) == 0
    capsys.readouterr()
    query = (
        ["--text", "red shirt", "--filter", "brand=A"] if source == "table" else ["--image", str(shop / "photos/5.png")]
    )
    assert main(["search", str(tmp_path / "run"), *query, "-k", "3"]) == 0
    assert "score" in capsys.readouterr().out
    report = next((tmp_path / "cache").glob("*/quarantine.csv")).read_text()
    assert report.count("\n") == 2  # a heading and the broken photo
    assert "7" in report


def test_search_by_text_and_filter(tiny_run, capsys):
    colour = tiny_run.catalogue().attributes["colour"][0]
    code, out, _ = run(capsys, "search", tiny_run.path, "--text", "shirt", "-k", 3, "--filter", f"colour={colour}")
    assert code == 0
    assert out.count(colour) >= 3


def test_search_by_image_and_item(tiny_run, capsys, tmp_path):
    photo = tmp_path / "query.png"
    from PIL import Image

    Image.fromarray(tiny_run.catalogue().images[5]).save(photo)
    code, out, _ = run(capsys, "search", tiny_run.path, "--image", photo, "-k", 2)
    assert code == 0
    assert out
    assert run(capsys, "search", tiny_run.path, "--item", tiny_run.catalogue().ids[3], "-k", 2)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "RUN"], "text"),
        (["search", "RUN", "--image", "none.png"], "none.png"),
        (["recommend", "RUN", "nothing"], "no product 'nothing'"),
        (["search", "RUN", "--image", "README.md"], "README.md"),
        (["search", "RUN", "--text", "   "], "no"),
        (["search", "RUN", "--text", "x", "--filter", "color=Red"], "did you mean 'colour'"),
        (["search", "RUN", "--text", "x", "--filter", "colour"], "no '='"),
        (["search", "nowhere", "--text", "x"], "nowhere does not exist"),
        (["embed", "configs"], "not a run folder"),
        (["bench", "kagl", "RUN"], "wrote no result"),
        (["bench", "kagle", "RUN"], "did you mean 'kagl'"),
        (["list", "objektives"], "did you mean 'objectives'"),
        (["run", "experiment=quickstar"], "did you mean 'quickstart'"),
        (["run", "expermient=fashion"], "did you mean 'experiment'"),
        (["run", "output=/dev/null/x", "data.source.products=240", "data.workers=1"], "/dev/null"),
        (["bench", "retrieval", "RUN", "-o", "setup.py"], "is a file"),
        (["report", "RUN", "nowhere"], "nowhere does not exist"),
        (["enhance", "RUN", "none.csv", "-o", "fills.csv"], "name a Parquet, CSV or JSON lines file"),
        (["report", "RUN", "RUN"], "is given twice"),
        (["report", "RUN", "-o", "configs"], "--output configs is a folder"),
    ],
)
def test_bad_input_exits_2_with_a_sentence(tiny_run, capsys, arguments, message):
    code, _, err = run(capsys, *(tiny_run.path if part == "RUN" else part for part in arguments))
    assert code == 2
    assert any(line.startswith("catalign: ") for line in err.splitlines())
    assert "Traceback" not in err
    assert message in err


def test_list_prints_summaries_and_options(capsys):
    code, out, _ = run(capsys, "list", "objectives", "-v")
    assert code == 0
    for name in ("mlm", "nsp", "simclr", "inpainting", "contrastive"):
        assert f"\n{name}" in f"\n{out}"
    assert "temperature" in out
    assert "quickstart" in run(capsys, "list", "experiments")[1]


def test_a_trainer_setting_that_every_stage_overrides_is_pointed_out(capsys):
    code, _, err = run(capsys, "config", "experiment=fashion", "trainer.lr=1")
    assert code == 0
    assert "changes nothing; use stages.text.trainer.lr" in err
    assert not run(capsys, "config", "experiment=fashion", "trainer.clip=2")[2]


def test_one_failing_run_of_a_sweep_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    ran = []

    def experiment(config):
        ran.append(config.seed)
        if config.seed == 1:
            raise CatalignError("seed 1 is broken")

    monkeypatch.setattr("catalign.pipeline.run_experiment", experiment)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["catalign"])
    code, _, err = run(capsys, "run", "-m", "seed=1,2")
    assert code == 2
    assert ran == [1, 2]
    assert "seed 1 is broken" in err


def test_config_prints_what_composes(capsys):
    code, out, _ = run(capsys, "config", "experiment=fashion", "seed=7")
    assert code == 0
    assert "seed: 7" in out
    assert "runs/fashion/seed7" in out


def test_export_prints_the_folders_it_wrote(tiny_run, capsys, tmp_path):
    code, out, _ = run(capsys, "export", tiny_run.path, "--to", "timm", "hf", "-o", tmp_path)
    assert code == 0
    assert out.split() == [str(tmp_path / "timm"), str(tmp_path / "hf")]
    assert (tmp_path / "timm" / "config.json").is_file()


def test_demo_names_its_extra(tiny_run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = run(capsys, "demo", tiny_run.path)
    assert code == 2
    assert "catalign[demo]" in err


def test_enhance_and_audit_as_the_readme_says(tiny_run, capsys, tmp_path):
    import pandas as pd

    catalogue = tiny_run.catalogue()
    rows = {"id": catalogue.ids[:6], "title": catalogue.text()[:6], "colour": ["", "red", "", "red", "red", "red"]}
    pd.DataFrame(rows).to_csv(tmp_path / "new.csv", index=False)
    chosen = ("--attribute", "colour", "--precision", 0)
    code, out, _ = run(capsys, "enhance", tiny_run.path, tmp_path / "new.csv", "-o", tmp_path / "fills.csv", *chosen)
    assert code == 0
    assert "colour" in out
    fills = pd.read_csv(tmp_path / "fills.csv")
    assert fills["id"].tolist() == [catalogue.ids[0], catalogue.ids[2]]
    assert fills["proposed"].isin(catalogue.attributes["colour"]).all()
    code, out, _ = run(capsys, "audit", tiny_run.path, "-n", 5, "-o", tmp_path / "audit")
    assert code == 0
    assert (tmp_path / "audit" / "audit.html").is_file()
    assert len(pd.read_csv(tmp_path / "audit" / "audit.csv")) == 5
    code, _, error = run(capsys, "audit", tiny_run.path, "-n", 0)
    assert (code, "ask for 1 or more" in error) == (2, True)


def test_enhance_writes_no_other_kind_of_table(tiny_run, capsys, tmp_path):
    code, _, err = run(capsys, "enhance", tiny_run.path, tmp_path / "new.csv", "-o", tmp_path / "fills.xlsx")
    assert code == 2
    assert "*.csv" in err
