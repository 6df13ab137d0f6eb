"""Indexes: exactness, ids over additions and removals, filters on every kind, files, helpful errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalign.config import IndexConfig
from catalign.errors import CatalignError
from catalign.retrieval.index import Index

FACTORIES = ["Flat", "SQ8", "IVF8,Flat", "HNSW16", "PCA16,Flat", "PCA16,IVF8,SQ8"]
REMOVABLE = [factory for factory in FACTORIES if "HNSW" not in factory]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(600, 24)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return [f"p{number}" for number in range(600)]


def exact(vectors: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None = None) -> np.ndarray:
    rows = np.arange(len(vectors)) if rows is None else rows
    return rows[np.argsort(-(queries @ vectors[rows].T), axis=1, kind="stable")[:, :k]]


@pytest.mark.parametrize("factory", FACTORIES)
def test_finds_itself_and_filters(factory: str, vectors: np.ndarray, ids: list[str]) -> None:
    index = Index.build(vectors, ids, factory)
    assert (len(index), index.width) == (600, 24)
    found, scores = index.search(vectors[:20], 5)
    assert [row[0] for row in found] == ids[:20]
    assert scores.shape == (20, 5)
    assert (np.diff(scores, axis=1) <= 0).all()

    rows = np.array([3, 77, 300, 301, 450, 599])
    found, scores = index.search(vectors[:20], 10, allowed=[ids[row] for row in rows])
    assert scores.shape == (20, 6), "k is clipped to what is allowed"
    assert all(sorted(row) == sorted(ids[r] for r in rows) for row in found), "a filter loses nothing"
    if factory in ("Flat", "IVF8,Flat", "HNSW16"):
        assert found == [[ids[r] for r in row] for row in exact(vectors, vectors[:20], 6, rows)]


def test_flat_is_exact(vectors: np.ndarray, ids: list[str]) -> None:
    found, scores = Index.build(vectors, ids).search(vectors[:50] + 0.1, 7)
    rows = exact(vectors, vectors[:50] + 0.1, 7)
    assert found == [[ids[r] for r in row] for row in rows]
    np.testing.assert_allclose(scores, np.take_along_axis((vectors[:50] + 0.1) @ vectors.T, rows, 1), rtol=1e-4)


def test_k_beyond_the_index_and_float64_views(vectors: np.ndarray, ids: list[str]) -> None:
    index = Index.build(np.asfortranarray(vectors[:9].astype(np.float64)), ids[:9])
    found, scores = index.search(vectors[::-1][:4].astype(np.float64), 100)
    assert scores.shape == (4, 9)
    assert all(sorted(row) == sorted(ids[:9]) for row in found)
    assert index.search(vectors[:2], 5, allowed=[])[0] == [[], []]


def test_ivf_with_few_probes_still_returns_k(vectors: np.ndarray, ids: list[str]) -> None:
    found, _ = Index.build(vectors, ids, "IVF8,Flat", nprobe=1).search(vectors[:3], 500)
    assert all(len(set(row)) == 500 for row in found)


@pytest.mark.parametrize("factory", REMOVABLE)
def test_add_remove_replace(factory: str, vectors: np.ndarray, ids: list[str], tmp_path: Path) -> None:
    index = Index.build(vectors[:500], ids[:500], factory, train=vectors)
    index.remove(ids[:100])
    assert len(index) == 400
    assert ids[0] not in index
    assert not {id for row in index.search(vectors[:100], 10)[0] for id in row} & set(ids[:100])
    assert [row[0] for row in index.search(vectors[100:500], 1)[0]] == ids[100:500], "ids do not shift"
    index.add(["new", *ids[:2]], vectors[500:503])
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    index.add(["after"], vectors[503:504])
    assert [row[0] for row in index.search(vectors[500:504], 1)[0]] == ["new", "p0", "p1", "after"]
    index.replace(["p499", "after"], vectors[504:506])
    assert [row[0] for row in index.search(vectors[504:506], 1)[0]] == ["p499", "after"]
    assert len(index) == 404
    assert len(set(index.search(vectors[499:500], 404)[0][0])) == 404


def test_a_number_is_never_given_twice(vectors: np.ndarray, tmp_path: Path) -> None:
    index = Index.build(vectors[:3], ["a", "b", "c"])
    index.remove(["c"])
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    index.add(["d"], vectors[3:4])
    assert index._labels == {"a": 0, "b": 1, "d": 3}


@pytest.mark.parametrize("factory", FACTORIES)
def test_saved_and_loaded_are_the_same(factory: str, vectors: np.ndarray, ids: list[str], tmp_path: Path) -> None:
    tuning = {"nprobe": 5} if "IVF" in factory else {"ef_search": 99} if "HNSW" in factory else {}
    index = Index.build(vectors, ids, factory, **tuning)
    index.save(tmp_path / "index", embeddings="abc")
    index.save(tmp_path / "index", embeddings="def")
    assert [path.name for path in tmp_path.iterdir()] == ["index"], "nothing temporary is left"
    loaded = Index.load(tmp_path / "index")
    assert loaded.manifest["embeddings"] == "def"
    before, after = index.search(vectors[:30], 10), loaded.search(vectors[:30], 10)
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])
    filtered = [i.search(vectors[:30], 10, allowed=ids[::2])[0] for i in (index, loaded)]
    assert filtered[0] == filtered[1]


@pytest.mark.parametrize("name", ["index.faiss", "ids.json"])
def test_altered_files_are_refused_by_name(name: str, vectors: np.ndarray, ids: list[str], tmp_path: Path) -> None:
    Index.build(vectors, ids).save(tmp_path / "index")
    path = tmp_path / "index" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CatalignError, match=rf"{name} was altered[\s\S]*catalign index RUN"):
        Index.load(tmp_path / "index")
    path.write_bytes(content[:-5])
    with pytest.raises(CatalignError, match=f"{name} has .* bytes"):
        Index.load(tmp_path / "index", verify=False)
    with pytest.raises(CatalignError, match=r"does not exist[\s\S]*catalign index RUN"):
        Index.load(tmp_path / "none")


def test_errors_name_problem_and_remedy(vectors: np.ndarray, ids: list[str]) -> None:
    index = Index.build(vectors, ids)
    for call, message in (
        (lambda: index.search(vectors[:1, :5]), r"\(1, 5\) for an index of width 24[\s\S]*catalign index RUN"),
        (lambda: index.add(["x"], vectors[:1, :5]), "width 24"),
        (lambda: index.add(["p3"], vectors[:1]), r"'p3' is in the index already[\s\S]*replace"),
        (lambda: index.add(["x", "x"], vectors[:2]), "'x' is given twice"),
        (lambda: index.add(["x"], vectors[:2]), "1 ids but 2 vectors"),
        (lambda: index.add(["x"], vectors[:1] * np.nan), "not finite"),
        (lambda: index.remove(["p1", "p6000"]), "'p6000' is not in the index[\\s\\S]*did you mean 'p600?"),
        (lambda: index.search(vectors[:1], allowed=["zzz"]), "'zzz' is not in the index"),
        (lambda: index.search(vectors[:1], 0), "k is 0"),
        (lambda: index.replace(["p1"], vectors[:2]), "1 different ids but 2 vectors"),
        (lambda: Index.build(vectors[:0], []), "no products"),
        (lambda: Index.build(vectors, ids, "Floot"), "'Floot'.*could not parse"),
        (lambda: Index.build(vectors, ids, nprobe=3), "nprobe is for IVF"),
        (lambda: Index.build(vectors, ids, ef_search=3), "ef_search is for HNSW"),
        (lambda: Index.build(vectors[:50], ids[:50], "IVF64,Flat"), r"than 50:.*\(64\)[\s\S]*use Flat.*IVF1,Flat"),
    ):
        with pytest.raises(CatalignError, match=message):
            call()
    assert len(index) == 600, "a refused change changes nothing"
    assert [row[0] for row in index.search(vectors[:9], 1)[0]] == ids[:9]


def test_hnsw_cannot_remove(vectors: np.ndarray, ids: list[str]) -> None:
    index = Index.build(vectors, ids, "HNSW16")
    with pytest.raises(CatalignError, match=r"cannot remove[\s\S]*Flat, SQ8 or IVF"):
        index.remove(["p1"])
    assert "p1" in index
    assert index.search(vectors[1:2], 1)[0] == [["p1"]]


def test_report_against_exact_search(vectors: np.ndarray, ids: list[str]) -> None:
    flat = Index.build(vectors, ids).report(vectors[:50], vectors, k=5)
    assert flat["recall"] == 1
    assert flat["exact_megabytes"] == pytest.approx(600 * 24 * 4 / 1e6)
    assert min(flat["qps"], flat["ms"], flat["build_seconds"]) > 0
    ivf = Index.build(vectors, ids, "IVF32,Flat", nprobe=1).report(vectors[:50], vectors, k=5)
    assert 0.2 < ivf["recall"] < 1, "one list of 32 cannot hold all neighbours"
    small = Index.build(vectors, ids, "SQ8").report(vectors[:50], vectors, k=5)
    assert small["megabytes"] < 0.5 * flat["megabytes"]
    assert 0.9 < small["recall"] <= 1


def test_index_configs_build(vectors: np.ndarray) -> None:
    from omegaconf import OmegaConf

    rng = np.random.default_rng(1)
    many = np.concatenate([vectors, 0.1 * rng.normal(size=(9500, 24)).astype(np.float32)])
    folder = Path(__file__).parents[2] / "configs" / "index"
    assert {path.stem for path in folder.glob("*.yaml")} == {"flat", "sq8", "ivf", "hnsw"}
    for path in folder.glob("*.yaml"):
        config = IndexConfig(**OmegaConf.to_container(OmegaConf.load(path)))
        index = Index.build(many, [str(n) for n in range(10_100)], **config.model_dump())
        assert index.search(many[:1], 1)[0] == [["0"]]
