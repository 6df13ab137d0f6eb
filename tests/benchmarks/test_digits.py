"""The digits as an image folder."""

from catalign.evaluation.images import read_folder


def test_digits_are_laid_out_as_the_protocol_reads_them(load_script, tmp_path):
    load_script("images/digits.py").write(tmp_path)
    found = read_folder(tmp_path)
    assert found.classes == list("0123456789")
    assert (len(found.paths), len(found.rows["test"])) == (1797, 599)
    names = [path.name for path in found.paths]
    assert max(names[row] for row in found.rows["train"]) < min(names[row] for row in found.rows["test"])
