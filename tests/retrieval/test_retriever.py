"""The Retriever on coloured squares, and how its results show themselves."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from catalign import registry
from catalign.data.store import EmbeddingStore
from catalign.embeddings.extract import Embedder
from catalign.embeddings.fusion import Fusion, fuse_store
from catalign.errors import CatalignError
from catalign.retrieval import retriever as module
from catalign.retrieval.index import Index
from catalign.retrieval.results import Hit, Results
from catalign.retrieval.retriever import Retriever
from toy_products import NO_PHOTO, ToyModel, make_catalogue, photo


class ToyRun:
    """What the retriever asks of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._catalogue = make_catalogue(path)
        self.config = SimpleNamespace(name="toy", seed=0)

    def catalogue(self):
        return self._catalogue

    def model(self) -> ToyModel:
        return ToyModel(self._catalogue)

    def index(self, fusion: Fusion, **options: object) -> None:
        store = EmbeddingStore.open(self.path / "embeddings")
        fusion.fit({n: store[n] for n in store.modalities}, {n: store.present(n) for n in store.modalities})
        fusion.save(self.path / "fusion")
        vectors, some = fuse_store(fusion, store)
        ids = [id for id, has in zip(store.ids, some) if has]
        Index.build(vectors[some], ids, **options).save(self.path / "index", embeddings=store.digest)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    run = ToyRun(tmp_path_factory.mktemp("run"))
    embedder = Embedder(run.model(), run.catalogue())
    embedder.catalogue(run.catalogue(), run.path / "embeddings", progress=False)
    run.index(registry.build("fusion", "weighted", weights={"image": 0.5, "text": 0.5}))
    return run


@pytest.fixture(scope="module")
def retriever(run: ToyRun) -> Retriever:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Run", ToyRun)
        return Retriever.from_run(run)


def colours(results: Results) -> set[str]:
    return {hit.attributes["colour"] for hit in results}


def test_text_image_and_both(retriever: Retriever) -> None:
    assert colours(retriever.search(text="red", k=15)) == {"Red"}
    assert colours(retriever.search(image=photo("blue"), k=15)) == {"Blue"}
    hits = retriever.search(text="hat", image=photo("green"), k=5)
    assert {(hit.attributes["colour"], hit.attributes["kind"]) for hit in hits} == {("Green", "hat")}
    assert len(hits) == 5
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_hits_tell_the_product(retriever: Retriever) -> None:
    catalogue = retriever.catalogue
    hit = retriever.search(text="red shoe", k=1)[0]
    assert catalogue.row(hit.id) == hit.row
    assert hit.title == catalogue.text()[hit.row]
    assert hit.photo.startswith(b"\xff\xd8")
    everything = retriever.search(text="red", k=1000)
    assert len(everything) == len(retriever.index)
    found = {hit.id: hit for hit in everything}
    assert found[NO_PHOTO].photo is None
    assert "kind" not in found["p0"].attributes, "missing attributes are left out"


def test_browsing_shows_products_without_a_query(retriever: Retriever) -> None:
    assert retriever.browse(k=3).ids == retriever.index.ids[:3]
    red = retriever.browse(filters={"colour": "Red"}, k=1000)
    assert colours(red) == {"Red"}
    assert set(red.ids) == set(retriever.search(text="red", filters={"colour": "Red"}, k=1000).ids)


def test_item_finds_others_like_it(retriever: Retriever) -> None:
    results = retriever.search(item="p12", k=4)
    assert len(results) == 4
    assert set(results.ids) == {"p0", "p24", "p36", "p48"}, "the other red shoes"


def test_item_queries_load_no_model(run: ToyRun, retriever: Retriever) -> None:
    def never() -> Embedder:
        raise AssertionError("the model was loaded")

    other = Retriever(retriever.catalogue, retriever.store, retriever.fusion, retriever.index, never)
    assert len(other.search(item=NO_PHOTO, k=3)) == 3


def test_filters(retriever: Retriever) -> None:
    results = retriever.search(text="red", filters={"colour": ["Green", "Blue"], "kind": "sock"}, k=100)
    assert {hit.attributes["colour"] for hit in results} == {"Green", "Blue"}
    assert {hit.attributes["kind"] for hit in results} == {"sock"}
    catalogue = retriever.catalogue
    matching = np.isin(catalogue.attributes["colour"], ["Green", "Blue"]) & (catalogue.attributes["kind"] == "sock")
    assert sorted(results.ids) == sorted(np.array(catalogue.ids)[matching].tolist())
    assert "p13" not in retriever.search(item="p13", filters={"colour": "Green"}, k=100).ids
    assert len(retriever.search(text="red", filters={"colour": []})) == 0
    with pytest.raises(CatalignError, match="unknown value of kind '3'"):
        retriever.search(text="red", filters={"kind": 3})


def test_weights_change_a_query(retriever: Retriever) -> None:
    query = {"text": "blue", "image": photo("red")}
    assert colours(retriever.search(**query, weights={"text": 1, "image": 0}, k=5)) == {"Blue"}
    assert colours(retriever.search(**query, weights={"text": 0, "image": 1}, k=5)) == {"Red"}


def test_bad_queries(retriever: Retriever, tmp_path: Path) -> None:
    for query, message in (
        ({}, r"no query[\s\S]*text, an image, both"),
        ({"text": "  "}, "tokenises to nothing"),
        ({"image": tmp_path / "none.jpg"}, "none.jpg is not an image"),
        ({"item": "p111"}, "no product 'p111'"),
        ({"item": "p1", "text": "red"}, "takes no text or image"),
        ({"text": "red", "k": 0}, "k is 0"),
        ({"text": "red", "filters": {"color": "Red"}}, "did you mean 'colour'"),
        ({"text": "red", "filters": {"colour": "Redd"}}, "unknown value of colour 'Redd'[\\s\\S]*did you mean 'Red'"),
        ({"text": "red", "filters": {"kind": ""}}, "unknown value of kind"),
        ({"text": "red", "weights": {"txt": 1}}, "did you mean 'text'"),
    ):
        with pytest.raises(CatalignError, match=message):
            retriever.search(**query)


def test_weights_need_the_weighted_fusion(retriever: Retriever) -> None:
    store = retriever.store
    vectors = {name: store[name] for name in store.modalities}
    gated = registry.build("fusion", "gated", steps=1, hidden=4).fit(vectors)
    fused, _ = fuse_store(gated, store)
    other = Retriever(retriever.catalogue, store, gated, Index.build(fused, store.ids), lambda: retriever.embedder)
    assert len(other.search(text="red", k=3)) == 3
    with pytest.raises(CatalignError, match=r"this run's is gated[\s\S]*fusion=weighted"):
        other.search(text="red", weights={"text": 1})


def test_parts_that_do_not_belong_together(retriever: Retriever, tmp_path: Path) -> None:
    parts = [retriever.catalogue, retriever.store, retriever.fusion, retriever.index, lambda: retriever.embedder]
    narrow = Index.build(np.eye(5, dtype=np.float32), list("abcde"))
    with pytest.raises(CatalignError, match=r"width 5, but .* have 7[\s\S]*catalign index RUN"):
        Retriever(*parts[:3], narrow, parts[4])
    names = {name: retriever.store[name] for name in retriever.store.names}
    foreign = EmbeddingStore.write(tmp_path / "foreign", retriever.store.ids, names, data="elsewhere")
    with pytest.raises(CatalignError, match=r"another catalogue[\s\S]*catalign embed RUN"):
        Retriever(parts[0], foreign, *parts[2:])
    newer = EmbeddingStore.write(tmp_path / "newer", retriever.store.ids, names, weights="trained again")
    with pytest.raises(CatalignError, match=r"other embeddings[\s\S]*catalign index RUN"):
        Retriever(parts[0], newer, *parts[2:])


@pytest.mark.parametrize(("missing", "command"), [("embeddings", "embed"), ("fusion", "index"), ("index", "index")])
def test_a_run_without_a_part_names_the_command(
    run: ToyRun, monkeypatch: pytest.MonkeyPatch, missing: str, command: str
) -> None:
    monkeypatch.setattr(module, "Run", ToyRun)
    (run.path / missing).rename(run.path / "away")
    try:
        with pytest.raises(
            CatalignError, match=rf"has no .*{missing}[\s\S]*catalign {command} {re.escape(str(run.path))}"
        ):
            Retriever.from_run(run)
    finally:
        (run.path / "away").rename(run.path / missing)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CatalignError, match="not a run folder"):
        Retriever.from_run(tmp_path)


def test_products_added_later_are_found(retriever: Retriever) -> None:
    vectors, _ = fuse_store(retriever.fusion, retriever.store)
    index = Index.build(vectors, retriever.store.ids)
    index.add(["new"], vectors[:1])
    index.remove(["p0"])
    later = Retriever(retriever.catalogue, retriever.store, retriever.fusion, index, lambda: retriever.embedder)
    hits = {hit.id: hit for hit in later.search(item="p3", k=100)}
    assert hits["new"] == Hit("new", hits["new"].score)
    assert "p0" not in hits


def results() -> Results:
    nasty = "<script>alert('x')</script> & [bold]co[/bold]"
    return Results([Hit("p1", 0.5, nasty, {"colour": '"Red"'}, 1, photo("red")), Hit("p2", -0.25)], '"<b>red"')


def test_results_are_a_list() -> None:
    found = results()
    assert (len(found), found.ids, found[0].id, found[1:].ids) == (2, ["p1", "p2"], "p1", ["p2"])
    assert [hit.id for hit in found] == ["p1", "p2"]


def test_results_in_a_terminal() -> None:
    shown = repr(results())
    assert "[bold]co[/bold]" in shown
    assert "0.500" in shown
    assert "-0.250" in shown
    assert "no product matches" in repr(Results([], "red"))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(results())
    assert "[bold]co[/bold]" in capture.get()


def test_results_in_a_notebook() -> None:
    page = results()._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<b>red" not in page
    assert 'src="data:image/jpeg;base64,' in page
    assert "no photo" in page
    assert "http" not in page, "self-contained"
    assert len(page) < 4000
    assert "no product matches" in Results([], "red")._repr_html_()
