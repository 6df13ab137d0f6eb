"""From logs to clean histories, catalogues made of logs, and the published data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalign import registry
from catalign.config import DataConfig, InteractionsConfig, compose
from catalign.data import logs, prepare
from catalign.data.catalogue import Catalogue
from catalign.data.events import STRING, Events
from catalign.data.interactions import LEFT_OUT, TRAIN, VAL, Histories
from catalign.errors import CatalignError

IDS = ["a", "b", "c", "d", "e"]


def events(rows: list[tuple[Any, ...]], kinds: list[str] | None = None) -> Events:
    """Of (user, item) or (user, item, seconds) rows."""
    times = np.array([row[2] for row in rows]) * 1_000_000 if len(rows[0]) > 2 else None
    users, items = (pa.array([row[place] for row in rows], STRING) for place in (0, 1))
    return Events(users, items, times, None if kinds is None else pa.array(kinds, STRING), len(rows), [])


def clean(found: Events, **settings: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Items by user, one letter each, and what was left out."""
    config = InteractionsConfig(path="log.csv", **{"min_user": 1, **settings})
    histories, facts = logs.histories(found, IDS, config)
    rows = zip(histories.users, histories.items, strict=True)
    return {user: "".join(IDS[item] for item in items) for user, items in rows}, facts


def left_out(facts: dict[str, Any]) -> dict[str, int]:
    return {reason: count for reason, count in facts["left_out"].items() if count}


def test_events_are_put_in_the_order_of_time() -> None:
    rows = [("u", "a", 3), ("v", "b", 1), ("u", "c", 1), ("v", "d", 1), ("u", "b", 3), ("v", "a", 0)]
    histories, facts = clean(events(rows))
    assert histories == {"u": "cab", "v": "abd"}, "events of one moment stay in the file's order"
    assert (facts["unsorted_users"], left_out(facts)) == (2, {})
    assert clean(events([row[:2] for row in rows]))[0] == {"u": "acb", "v": "bda"}
    assert "put in the order of time for 2 users" in logs.in_words(facts)
    assert clean(events([("v", "a", 5), ("u", "b", 1), ("u", "c", 1), ("v", "a", 6)]))[1]["unsorted_users"] == 0


def test_repeated_events() -> None:
    timed = events([("u", "a", 1), ("u", "b", 1), ("u", "a", 1), ("u", "a", 2), ("v", "a", 1)])
    untimed = events([("u", "a"), ("u", "b"), ("u", "a"), ("v", "a")])
    assert clean(timed)[0] == {"u": "aba", "v": "a"}
    assert left_out(clean(timed)[1]) == {"repeats": 1}
    assert clean(timed, repeats="keep")[0] == {"u": "abaa", "v": "a"}
    assert clean(untimed)[0] == {"u": "aba", "v": "a"}
    assert clean(untimed, repeats="drop")[0] == {"u": "ab", "v": "a"}
    assert left_out(clean(untimed, repeats="drop")[1]) == {"repeats": 1}


def test_items_that_the_catalogue_lacks() -> None:
    found = events([("u", "a"), ("u", "x"), ("u", "b"), ("v", "y"), ("u", "x")])
    histories, facts = clean(found)
    assert histories == {"u": "ab"}
    assert left_out(facts) == {"unknown_items": 3}
    assert facts["unknown_items"] == {"count": 2, "examples": ["x", "y"]}
    lacking = "no bad rows; events left out: 3 of 2 items that the catalogue lacks (x, y)"
    assert logs.in_words(facts) == f"{lacking}; no column of times, so the file's order counts"
    with pytest.raises(CatalignError, match=r"3 events of log.csv are of 2 items .*: 'x', 'y'\n.*=leave_out"):
        clean(found, unknown_items="stop")
    assert clean(events([("u", "a")]), unknown_items="stop")[0] == {"u": "a"}


def test_kinds_of_event() -> None:
    rows = [("u", "a"), ("u", "x"), ("u", "b"), ("v", "c")]
    kinds = ["view", "view", "purchase", "cart"]
    histories, facts = clean(events(rows, kinds), events=["purchase", "cart"])
    assert histories == {"u": "b", "v": "c"}
    assert left_out(facts) == {"other_kinds": 2}, "an unknown item of another kind is no concern"
    with pytest.raises(CatalignError, match=r"unknown kind of event .*'purchse'\n.*did you mean 'purchase'"):
        clean(events(rows, kinds), events=["purchse"])
    with pytest.raises(CatalignError, match=r"no column of kinds of event\n.*columns.event=COLUMN"):
        clean(events(rows), events=["purchase"])


def test_users_and_items_with_few_events() -> None:
    rows = [("u", "a"), ("u", "b"), ("u", "c"), ("v", "a"), ("v", "b"), *[("w", item) for item in "aabb"]]
    histories, facts = clean(events(rows), min_user=3)
    assert histories == {"u": "abc", "w": "aabb"}
    assert (left_out(facts), facts["users_left_out"]) == ({"too_few": 2}, 1)
    assert "2 of users with fewer than 3 (1 users)" in logs.in_words(facts)
    histories, facts = clean(events(rows), min_user=3, min_item=2)
    assert histories == {"w": "aabb"}, "without c, u has two events"
    assert "5 of users with fewer than 3 or of items with fewer than 2 (2 users)" in logs.in_words(facts)


def test_nothing_left_says_why() -> None:
    with pytest.raises(CatalignError, match=r"no event of the log log.csv is left: 1 of users with fewer than 3"):
        clean(events([("u", "a")]), min_user=3)
    with pytest.raises(CatalignError, match=r"the log's ids are like 'B01', the catalogue's like 'a'"):
        clean(events([("u", "B01")]))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A table of five products and an empty row, and a log of it with something wrong of every kind."""
    (tmp_path / "shop.csv").write_text("id,title\na,red shoe\nb,blue bag\nc,green hat\nd,\ne,old cap\n")
    rows = ["u1,a,2020-01-02", "u1,b,2020-01-01", "u1,c,2020-01-03", "u1,c,2020-01-03", "u1,d,2020-01-04"]
    rows += ["u2,a,1577836800", "u2,b,1577923200", ",a,3", "u3,a,soon", "u3,a"]
    rows += [f"u{user},{item},{user * 86_400 + place}" for user in (4, 5) for place, item in enumerate("ecba")]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    return tmp_path


def overrides(folder: Path, *more: str) -> DataConfig:
    own = ["source.path", "interactions.path"]
    paths = [f"data.{key}={folder / name}" for key, name in zip(own, ("shop.csv", "log.csv"), strict=True)]
    settings = ["columns.image=null", "max_bad_share=0.5", "split.val=0", "split.test=0", f"cache={folder / 'cache'}"]
    return compose(["data=table", *paths, *(f"data.{setting}" for setting in settings), *more]).data


def test_a_table_with_a_log(shop: Path) -> None:
    catalogue = Catalogue.load(overrides(shop), progress=False)
    histories = catalogue.histories
    assert histories is not None
    assert histories.users == ["u1", "u4", "u5"]
    assert [[catalogue.ids[item] for item in items] for items in histories.items] == [list("bac"), *[list("ecba")] * 2]
    assert histories.times is not None
    assert histories.times[1].tolist() == [345_600, 345_601, 345_602, 345_603]
    assert [labels.tolist() for labels in histories.splits] == [[0, 1, 2], [0, 0, 1, 2], [0, 0, 1, 2]]
    facts = catalogue.describe()
    assert facts["behaviour"] == histories.describe()
    assert (facts["log"]["rows"], facts["log"]["bad_rows"]) == (18, 3)
    assert left_out(facts["log"]) == {"unknown_items": 1, "repeats": 1, "too_few": 2}
    assert "behaviour   3 users, 4 items, 11 events (train 5, val 3, test 3), 1970-01-05 to 2020-01-03" in repr(
        catalogue
    )
    assert "log         3 bad rows, see interactions_quarantine.csv; events left out: 1 of 1 items" in repr(catalogue)
    report = (catalogue.path / logs.REPORT).read_text().splitlines()
    assert report[1:] == [
        "7,a,user,missing user",
        "8,a,time,unparsable time: 'soon' is neither an ISO date nor seconds since 1970",
        '9,,,"malformed: 2 cells, the header has 3"',
    ]


def test_too_many_bad_rows_of_a_log_stop(shop: Path) -> None:
    (shop / "shop.csv").write_text("id,title\na,red shoe\nb,blue bag\nc,green hat\n")
    problem = r"3 of 18 rows of '.*log.csv' are bad \(16.7%, the limit is 5.0%\): row 7 \(user\): missing user"
    with pytest.raises(CatalignError, match=problem) as error:
        prepare.prepare(overrides(shop, "data.max_bad_share=0.05"), progress=False)
    assert "interactions_quarantine.csv" in str(error.value)
    assert "data.max_bad_share=0.17" in str(error.value)
    Catalogue.load(overrides(shop, "data.max_bad_share=0.17"), progress=False)
    with pytest.raises(CatalignError, match=problem):  # the cache does not outwit a stricter limit
        Catalogue.load(overrides(shop, "data.max_bad_share=0.05"), progress=False)


def test_the_log_and_its_settings_are_part_of_the_fingerprint(shop: Path) -> None:
    def prepared(*more: str) -> Path:
        return prepare.prepare(overrides(shop, *more), progress=False)

    base = prepared()
    assert prepared("data.interactions.split=leave_one_out") == base
    paths = {base, prepared("data.interactions.split=global_time"), prepared("data.interactions.min_user=2")}
    with (shop / "log.csv").open("a") as file:
        file.write("\nu9,a,1\nu9,b,2\nu9,c,3\n")
    paths.add(prepared())
    assert len(paths) == 4


def synthetic(folder: Path, **settings: Any) -> DataConfig:
    source = {"name": "synthetic", "products": 60, "users": 30, "image_size": (8, 8)}
    defaults = {"name": "drawn", "source": source, "image_size": (8, 8), "vocabulary_size": 300}
    return DataConfig(**{**defaults, "cache": str(folder), **settings})


def test_histories_of_the_source_itself_are_split_too(tmp_path: Path) -> None:
    own = Catalogue.load(synthetic(tmp_path), progress=False).histories
    assert own is not None
    assert len(own.cases("test")) == len(own.cases("val")) == 30
    config = InteractionsConfig(split="cold_items", cold=0.3, min_user=6)
    cold = Catalogue.load(synthetic(tmp_path, interactions=config), progress=False).histories
    assert cold is not None
    assert cold.items.lengths.min() >= 6
    assert len(cold) < 30
    with pytest.raises(CatalignError, match=r"no user of 'drawn' has 99 events\n.*min_user"):
        prepare.prepare(synthetic(tmp_path, interactions=InteractionsConfig(min_user=99)), progress=False)
    assert not set(cold.part(TRAIN).values.tolist()) & set(cold.part(VAL, LEFT_OUT).values.tolist())


def test_a_table_without_a_log_has_no_histories_of_its_own(shop: Path) -> None:
    config = overrides(shop, "data.interactions.path=null")
    with pytest.raises(CatalignError, match=r"'table' has no histories of its own\n.*data.interactions.path"):
        prepare.prepare(config, progress=False)


def test_an_unknown_key_names_the_nearest(shop: Path) -> None:
    with pytest.raises(CatalignError, match=r"'data.interactions.pth'.*\n.*did you mean 'path'"):
        overrides(shop, "data.interactions.pth=log.csv")
    with pytest.raises(CatalignError, match=r"data.interactions.columns.usr.*\n.*did you mean 'user'"):
        overrides(shop, "data.interactions.columns.usr=id")


def bare(folder: Path, log: str, attributes: str | None = None, **settings: Any) -> DataConfig:
    (folder / "log.txt").write_text(log)
    interactions = {"path": str(folder / "log.txt"), **settings}
    source: dict[str, Any] = {"name": "log", "interactions": interactions}
    columns: dict[str, Any] = {"image": None}
    if attributes is not None:
        (folder / "attributes.json").write_text(attributes)
        source["attributes"] = str(folder / "attributes.json")
        columns["attributes"] = ["attributes"]
    return DataConfig(
        name="bare",
        source=source,
        interactions=interactions,
        columns=columns,
        split={"val": 0, "test": 0},
        image_size=(1, 1),
        cache=str(folder / "cache"),
    )


def test_the_items_of_a_log_are_a_catalogue(tmp_path: Path) -> None:
    log = "u1 10 9 x\nu2 9 10 007 10\nu3 11 9\n"
    config = bare(tmp_path, log, '{"9": [3, 17], "x": [], "11": [1]}')
    catalogue = Catalogue.load(config, progress=False)
    assert catalogue.ids == ["007", "9", "10", "x"], "11 is only in the history of a user with two events"
    assert catalogue.attributes["attributes"].tolist() == ["", "3 17", "", ""]
    assert not catalogue.has_text.any()
    assert not catalogue.has_image.any()
    assert catalogue.images.shape == (4, 1, 1, 3)
    assert (catalogue.splits == "train").all()
    assert len(np.unique(catalogue.groups)) == 4
    assert catalogue.histories is not None
    assert [items.tolist() for items in catalogue.histories.items] == [[2, 1, 3], [1, 2, 0, 2]]
    assert left_out(catalogue.describe()["log"]) == {"too_few": 2}
    (tmp_path / "attributes.json").write_text('{"9": [3]}')
    assert prepare.prepare(config, progress=False) != catalogue.path


def test_a_log_without_attributes_has_no_such_column(tmp_path: Path) -> None:
    catalogue = Catalogue.load(bare(tmp_path, "u1 a b c\n"), progress=False)
    assert catalogue.ids == ["a", "b", "c"]
    assert catalogue.attributes == {}


@pytest.mark.parametrize(
    ("log", "attributes", "problem"),
    [
        ("", None, r"log.txt is empty"),
        ("u1 a b\n", None, r"no event of the log .* is left: 2 of users with fewer than 3 \(1 users\)"),
        ("u1\nu2\n", None, r"is left: 2 of 2 rows bad \(row 0, history: empty history\)"),
        ("u1 a b c", "[1, 2]", r"attributes.json is not a JSON object of lists\n"),
        ("u1 a b c", '{"a": 1}', r"attributes.json is not a JSON object of lists\n"),
        ("u1 a b c", "{", r"attributes.json is not valid JSON"),
    ],
)
def test_logs_that_are_no_catalogue(log: str, attributes: str | None, problem: str, tmp_path: Path) -> None:
    with pytest.raises(CatalignError, match=problem):
        prepare.prepare(bare(tmp_path, log, attributes), progress=False)


def test_a_log_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(CatalignError, match=r"path is not given\n.*data.interactions.path=PATH"):
        prepare.prepare(compose(["data=log"]).data)
    (tmp_path / "log.csv").write_text("user,item\nu,a\nu,b\nu,a\n")
    config = compose(["data=log", f"data.interactions.path={tmp_path / 'log.csv'}", f"data.cache={tmp_path}"]).data
    assert Catalogue.load(config, progress=False).ids == ["a", "b"]
    with pytest.raises(CatalignError, match=r"x.json does not exist\n.*data.source.attributes"):
        registry.build("source", "log", interactions={"path": "log.txt"}, attributes="x.json")


@pytest.mark.parametrize("name", ["beauty", "sports", "toys", "games", "games_cold"])
@pytest.mark.parametrize("root", [None, "elsewhere"])
def test_public_data_that_is_not_there_says_where_it_is(name: str, root: str | None, tmp_path: Path) -> None:
    folder = tmp_path / root if root else "null"
    config = compose([f"data=amazon_{name}", f"data.root={folder}"]).data
    with pytest.raises(
        CatalignError, match=rf"^{name}: no file amazon-\w+/\w+\.\w+ .*data.root.*\n.*https://github"
    ) as error:
        prepare.prepare(config, progress=False)
    assert "CATALIGN_DATA" in str(error.value)
    assert "None" not in str(error.value)


PUBLISHED = {
    "beauty": (22_363, 12_101, 198_502),
    "sports": (35_598, 18_357, 296_337),
    "toys": (19_412, 11_924, 167_597),
    "games": (50_546, 16_859, 440_264),
}


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a name to the catalogue of a local copy of public data, prepared once."""
    if not (Path(os.environ.get("CATALIGN_DATA", "absent")) / "amazon-sequences").is_dir():
        pytest.skip("CATALIGN_DATA is not given")
    cache = tmp_path_factory.mktemp("cache")
    return lambda name: Catalogue.load(compose([f"data=amazon_{name}", f"data.cache={cache}"]).data, progress=False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str, public: Any) -> None:
    catalogue = public(name)
    histories: Histories = catalogue.histories
    users, items, count = PUBLISHED[name]
    assert (len(histories), len(catalogue), len(histories.items.values)) == (users, items, count)
    assert len(np.unique(histories.items.values)) == items
    facts = catalogue.describe()
    assert facts["behaviour"]["splits"] == {"train": count - 2 * users, "val": users, "test": users, "left_out": 0}
    assert not any(facts["log"]["left_out"].values())
    assert len(histories.cases("test")) == len(histories.cases("val")) == users


def test_the_published_popularity_baseline(public: Any) -> None:
    """Popularity over all events, test ones included, is the published PopRec: HR@10 .0152, NDCG@10 .0068 on Beauty."""
    catalogue = public("beauty")
    cases = catalogue.histories.cases("test")
    counts = np.bincount(catalogue.histories.items.values, minlength=len(catalogue)).astype(float)
    hits, gains = 0, 0.0
    for context, target in zip(cases.contexts, cases.targets, strict=True):
        scores = counts.copy()
        scores[context] = -1
        rank = int((scores > scores[target]).sum() + (scores[:target] == scores[target]).sum())
        hits, gains = hits + (rank < 10), gains + (rank < 10) / np.log2(rank + 2)
    assert (round(hits / len(cases), 4), round(gains / len(cases), 4)) == (0.0152, 0.0068)


def test_games_are_known_by_their_titles_and_their_log(public: Any) -> None:
    catalogue = public("games")
    assert catalogue.text()[0] == "Fire Emblem: The Sacred Stones"
    first = catalogue.histories.items[0]
    assert [catalogue.ids[item] for item in first] == [str(number) for number in range(15)], "the target comes last"


def test_ids_cannot_know_cold_games(public: Any) -> None:
    histories = public("games_cold").histories
    trained = np.unique(histories.part(TRAIN).values)
    for split in ("val", "test"):
        cases = histories.cases(split)
        assert len(cases) > 4000
        assert not np.isin(cases.targets, trained).any()


def test_attributes_of_the_published_items(public: Any) -> None:
    catalogue = public("toys")
    known = json.loads(
        (Path(os.environ["CATALIGN_DATA"]) / "amazon-sequences/Toys_and_Games_item2attributes.json").read_text()
    )
    assert catalogue.attributes["attributes"][catalogue.row("7")] == " ".join(map(str, known["7"]))
    assert len(known) == len(catalogue)
