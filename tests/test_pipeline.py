import json
import shutil

import numpy as np
import pytest

from catalign import pipeline
from catalign.config import compose
from catalign.data.store import EmbeddingStore
from catalign.embeddings.extract import Embedder
from catalign.errors import CatalignError
from catalign.evaluation.base import Result
from catalign.retrieval.index import Index
from catalign.retrieval.retriever import Retriever
from catalign.training.loaders import fields_of


def test_a_finished_run_holds_everything(tiny_run):
    assert list(tiny_run.stages) == ["text", "image", "align", "behaviour", "recommend"]
    for part in ("config.json", "run.json", "report.html", "embeddings/manifest.json", "untrained/manifest.json"):
        assert (tiny_run.path / part).is_file(), part
    results = sorted(path.parent.name for path in (tiny_run.path / "results").glob("*/*.json"))
    assert set(results) == {"pretext", "probe", "retrieval", "sequential"}
    record = json.loads((tiny_run.path / "run.json").read_text())
    assert set(record["stages"]) == set(tiny_run.stages)


def test_a_run_shows_its_stages_and_results(tiny_run):
    page, seconds = tiny_run._repr_html_(), tiny_run.record()["stages"]["text"]["seconds"]
    assert f"<tr><td>text</td><td>mlm + nsp</td><td>trained in {seconds:.0f} s</td></tr>" in page
    assert f"mlm + nsp, trained in {seconds:.0f} s" in repr(tiny_run)
    assert len(tiny_run.results) == page.count("<details>") == 4
    for path in tiny_run.results:
        result = Result.load(path)
        key = next(iter(result.metrics))
        assert result.protocol["id"] in page
        assert f"<tr><td>{key}</td><td>{result.mean(key):.4f}</td>" in page
        assert path.parent.name in repr(tiny_run)


def test_every_result_has_its_protocol_seed_versions_and_baselines(tiny_run):
    for path in (tiny_run.path / "results").glob("*/*.json"):
        result = json.loads(path.read_text())
        assert result["protocol"]["id"]
        assert result["seeds"] == [0]
        assert result["metrics"]
        assert result["baselines"], path
        assert {"hardware", "versions", "wall_clock_s", "git", "config"} <= result.keys()


def test_running_again_changes_nothing(tiny_run):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.path.glob("**/*.safetensors")}
    before |= {path: path.stat().st_mtime_ns for path in tiny_run.path.glob("**/*.npy")}
    pipeline.train(tiny_run)
    pipeline.embed(tiny_run)
    pipeline.build_index(tiny_run)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture
def copied(tiny_run, tiny_config, tmp_path):
    """A function to a run like the tiny one, in a folder of its own, with other settings."""

    def make(*overrides):
        shutil.copytree(tiny_run.path, tmp_path / "copy")
        return pipeline.start(tiny_config(tmp_path / "copy", *overrides))

    return make


def test_other_weights_are_embedded_again_and_never_measured_against_old_embeddings(copied):
    run = copied("stages.align.trainer.lr=3e-3")
    before = EmbeddingStore.open(run.path / "embeddings").digest
    pipeline.train(run)
    with pytest.raises(CatalignError, match=r"made by other weights(.|\n)*catalign embed"):
        pipeline.context_of(run)
    assert pipeline.embed(run).digest != before
    with pytest.raises(CatalignError, match="catalign index"):
        Retriever.from_run(run)
    pipeline.build_index(run)
    assert len(Retriever.from_run(run).search(text="shirt", k=3)) == 3


@pytest.mark.parametrize("fusion", ["gated", "concat"])
def test_every_fusion_can_be_indexed_measured_and_searched(copied, fusion):
    extra = ["fusion.steps=3"] if fusion == "gated" else []
    run = copied(f"fusion={fusion}", *extra)
    pipeline.fuse(run, EmbeddingStore.open(run.path / "embeddings"))
    with pytest.raises(CatalignError, match="catalign index"):  # its index is still that of the weighted fusion
        Retriever.from_run(run)
    pipeline.build_index(run)
    assert pipeline.evaluate(run, ["retrieval"])
    assert len(Retriever.from_run(run).search(text="shirt", k=3)) == 3


def test_a_failing_protocol_stops_neither_the_others_nor_the_report(copied, monkeypatch):
    run = copied()
    (run.path / "report.html").unlink()

    def failing(context, name, **options):
        if name == "pretext":
            raise CatalignError("pretext is broken")
        return original(context, name, **options)

    original = pipeline.evaluate_protocol
    monkeypatch.setattr(pipeline, "evaluate_protocol", failing)
    shutil.rmtree(run.path / "results")
    with pytest.raises(CatalignError, match="pretext is broken"):
        pipeline.evaluate(run)
    assert (run.path / "results" / "retrieval").is_dir()
    assert (run.path / "report.html").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("index.factory=Nope", "Nope"),
        ("stages.text.text={titel: 1}", "did you mean 'title'"),
        ("evaluation.probe.attributes=[colur]", "did you mean 'colour'"),
        ("stages.align.locked=[imag]", "did you mean 'image'"),
        ("stages.align.init=[txt]", "did you mean 'text'"),
    ],
)
def test_a_mistake_is_found_before_training(tiny_config, tmp_path, override, message):
    with pytest.raises(CatalignError, match=message):
        pipeline.start(tiny_config(tmp_path / "run", override))


def test_a_public_fallback_may_lack_a_text_column_but_a_typo_is_none(tiny_config, tmp_path):
    columns = ["data.fallback={name: synthetic, products: 240, users: 40}"]
    lacking = "data.fallback_columns={id: id, image: image, text: {title: 1}, attributes: [colour]}"
    extra = [*columns, lacking, "stages.text.text={title: 1, description: 1}", "evaluation.probe.attributes=[colour]"]
    run = pipeline.start(tiny_config(tmp_path / "run", *extra))
    assert fields_of(run, "text") == {"title": 1}
    with pytest.raises(CatalignError, match="did you mean 'title'"):
        pipeline.start(tiny_config(tmp_path / "run", *extra, "stages.text.text={titel: 1}"))


def test_embeddings_line_up_with_the_catalogue(tiny_run):
    store, catalogue = EmbeddingStore.open(tiny_run.path / "embeddings"), tiny_run.catalogue()
    assert store.ids == catalogue.ids
    assert store["text"].shape == store["image"].shape
    assert np.allclose(np.linalg.norm(store["image"][:][store.present("image")], axis=1), 1, atol=1e-4)
    assert len(Index.load(tiny_run.path / "index")) == len(catalogue)


def test_training_changed_the_embeddings(tiny_run):
    trained = EmbeddingStore.open(tiny_run.path / "embeddings")["text"][:]
    untrained = EmbeddingStore.open(tiny_run.path / "untrained")["text"][:]
    assert trained.shape == untrained.shape
    assert not np.allclose(trained, untrained, atol=1e-2)


def test_a_protocol_without_its_data_is_skipped_with_a_sentence(tiny_run, capsys):
    assert pipeline.evaluate(tiny_run, ["kagl"]) == []
    assert "skipped" in capsys.readouterr().err


def test_every_objective_lowers_its_loss_when_trained_a_little(tiny_config, tmp_path):
    config = tiny_config(
        tmp_path / "run",
        "stages.text.trainer={max_steps: 60, lr: 2e-3}",
        "stages.image.trainer={max_steps: 30, lr: 2e-3}",
        "stages.align.trainer={max_steps: 40, lr: 2e-3}",
        "stages.behaviour.trainer={max_steps: 20, batch_size: 16, lr: 2e-3}",
    )
    run = pipeline.start(config)
    pipeline.train(run)
    for stage, folder in run.stages.items():
        history = json.loads((folder / "metrics.json").read_text())
        held_out = [entry["values"] for entry in history if any(key.startswith("val/") for key in entry["values"])]
        for objective in config.stages[stage].objectives:
            first, last = held_out[0][f"val/{objective}/loss"], held_out[-1][f"val/{objective}/loss"]
            if objective != "nsp":  # needs more than a few dozen steps to leave chance
                assert last < first, (stage, objective, first, last)


@pytest.mark.parametrize("experiment", ["quickstart", "fashion"])
def test_pretraining_stages_are_those_of_one_modality(experiment):
    assert pipeline.single_modality_stages(compose([f"experiment={experiment}"])) == ["text", "image"]


def test_products_are_recommended_from_a_history(tiny_run):
    retriever, catalogue = Retriever.from_run(tiny_run), tiny_run.catalogue()
    history = [catalogue.ids[row] for row in (3, 5, 8)]
    found = retriever.recommend(history, k=5)
    ids = [hit.id for hit in found]
    assert len(set(ids)) == 5
    assert not set(ids) & set(history)
    seen_too = [hit.id for hit in retriever.recommend(history, k=len(catalogue), exclude_seen=False)]
    assert set(history) < set(seen_too)
    assert [id for id in seen_too if id not in history][:5] == ids
    reds = retriever.recommend(history, k=5, filters={"colour": "red"})
    assert {hit.attributes["colour"] for hit in reds} == {"red"}
    for given in (iter(history), np.array(history)):
        assert [hit.id for hit in retriever.recommend(given, k=np.int64(5))] == ids
    assert retriever.recommend(catalogue.ids[:7], k=1).query == f"after {', '.join(catalogue.ids[2:7])} and 2 before"
    with pytest.raises(CatalignError, match="is one text"):
        retriever.recommend(history[0])
    with pytest.raises(CatalignError, match=r"k is 2\.5"):
        retriever.recommend(history, k=2.5)
    with pytest.raises(CatalignError, match="an empty history"):
        retriever.recommend([])
    with pytest.raises(CatalignError, match="has no product 'nothing'"):
        retriever.recommend(["nothing"])


def test_a_split_without_events_is_told_before_training(tiny_config, tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"u{user},i{item},7" for user in range(9) for item in range(user, user + 5)]
    log.write_text("\n".join(["user,item,time", *rows]))
    given = ["experiment=next_item", "data=log", f"data.interactions.path={log}", f"data.cache={tmp_path}"]
    config = compose([*given, f"output={tmp_path / 'run'}", "data.interactions.split=global_time"])
    with pytest.raises(CatalignError, match="held out for 'val'"):
        pipeline.start(config)


def test_a_last_stage_that_describes_no_products_is_refused_before_training(tiny_config, tmp_path):
    only = ["~stages.text", "~stages.image", "~stages.align", "~stages.recommend", "stages.behaviour.init=[]"]
    other = [
        "~objective@stages.behaviour.objectives.next_item",
        "+objective@stages.behaviour.objectives.segment=segment",
    ]
    with pytest.raises(CatalignError, match="scores no products"):
        pipeline.run_experiment(tiny_config(tmp_path / "run", *only, *other, "encoder.behaviour.items=ids"))


def test_a_model_of_behaviour_alone_is_embedded_searched_and_measured(tiny_config, tmp_path):
    without = ["stages.text", "stages.image", "stages.align", "stages.recommend"]
    without += ["evaluation.pretext", "evaluation.probe"]
    alone = [*(f"~{key}" for key in without), "encoder.behaviour.items=ids", "stages.behaviour.init=[]"]
    run = pipeline.run_experiment(tiny_config(tmp_path / "run", *alone, "fusion.weights={behaviour: 1}"))
    store = EmbeddingStore.open(run.path / "embeddings")
    assert store.modalities == ["behaviour"]
    bought = run.catalogue().histories.part(0).values
    assert store.present("behaviour").sum() == len(set(bought.tolist()))
    retriever = Retriever.from_run(run)
    hits = retriever.recommend([run.catalogue().ids[int(bought[0])]], k=3)
    vector = Embedder.from_run(run).histories([bought[:1]])
    with pytest.raises(CatalignError, match="training knew"):
        retriever.recommend([run.catalogue().ids[int(np.flatnonzero(~store.present("behaviour"))[0])]])
    scores = store["behaviour"] @ vector[0]
    assert [hit.score for hit in hits] == pytest.approx(
        sorted(scores[np.arange(len(scores)) != bought[0]])[::-1][:3], abs=1e-5
    )
    assert list((run.path / "results" / "sequential").glob("*.json"))
    assert not (run.path / "results" / "retrieval").exists()
