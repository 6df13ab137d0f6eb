import pytest

from catalign.artifacts import atomic, digest, is_sealed, read_json, seal, unseal, write_json
from catalign.errors import CatalignError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def half_written():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_written()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_sealed_folder_tells_what_happened_to_its_files(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"12345")
    assert not is_sealed(tmp_path)
    with pytest.raises(CatalignError, match="unfinished"):
        unseal(tmp_path, "thing", "make it")
    seal(tmp_path, kind="toy")
    assert unseal(tmp_path, "thing", "make it")["kind"] == "toy"
    (tmp_path / "a.bin").write_bytes(b"12346")
    unseal(tmp_path, "thing", "make it", verify=False)
    with pytest.raises(CatalignError, match=r"a.bin was altered(.|\n)*make it"):
        unseal(tmp_path, "thing", "make it")
    (tmp_path / "a.bin").write_bytes(b"1")
    with pytest.raises(CatalignError, match="has 1 bytes, not 5"):
        unseal(tmp_path, "thing", "make it", verify=False)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(CatalignError, match="is missing"):
        unseal(tmp_path, "thing", "make it")


def test_read_json_names_the_file(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CatalignError, match=r"bad.json is not valid JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(CatalignError, match=r"none.json does not exist"):
        read_json(tmp_path / "none.json")


def test_digest_ignores_key_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
