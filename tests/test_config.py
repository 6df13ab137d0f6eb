import pytest

from catalign.config import compose, config_folder
from catalign.errors import CatalignError
from catalign.pipeline import validate

EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_is_valid(experiment):
    config = compose([f"experiment={experiment}"])
    validate(config)
    assert config.name in (experiment, f"{experiment}_{config.data.name}")


@pytest.mark.parametrize("group", ["data", "encoder/text", "encoder/image", "trainer", "fusion", "index"])
def test_every_file_of_a_group_composes(group):
    for path in (config_folder() / group).glob("*.yaml"):
        extra = ["data.source.path=x"] if group == "data" and path.stem in {"table", "folder", "hub"} else []
        validate(compose([f"{group}={path.stem}", *extra]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batchsize=3", "did you mean 'batch_size'"),
        ("sead=3", "did you mean 'seed'"),
        ("experiment=fashon", "did you mean 'fashion'"),
        ("data=fasion", "did you mean 'fashion'"),
        ("trainer.lr=-1", "greater than 0"),
        ("trainer.lr=fast", "valid number"),
        ("stages.align.trainer.warmupp=0.1", "did you mean 'warmup'"),
        ("data.columns.titel=x", "known: "),
        ("data.nosuch.key=3", "data.nosuch"),
        ("data.max_bad_share=2", "less than or equal to 1"),
        ("stages.algn.trainer.lr=1", "stages.algn"),
        ("seed", "key=value"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_nearest_name(override, message):
    with pytest.raises(CatalignError) as caught:
        compose([override])
    assert message in str(caught.value)


def test_a_misspelt_option_of_a_component_is_found_before_any_work():
    with pytest.raises(CatalignError, match="did you mean 'rate'"):
        validate(compose(["stages.text.objectives.mlm.ratee=0.2"]))


def test_a_wrong_type_of_an_option_names_its_key():
    with pytest.raises(CatalignError, match=r"stages.text.objectives.mlm.rate"):
        validate(compose(["stages.text.objectives.mlm.rate=often"]))


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "32")])
def test_a_processor_without_bf16_computes_in_fp32_unless_told_otherwise(monkeypatch, native, precision):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    assert compose([]).trainer.precision == precision
    assert compose(["trainer.precision=bf16"]).trainer_of("image").precision == "bf16"


def test_a_stage_overrides_the_trainer_only_where_it_says_so():
    config = compose(["trainer.clip=0.5", "stages.text.trainer.lr=0.01"])
    assert (config.trainer_of("text").lr, config.trainer_of("text").clip) == (0.01, 0.5)
    assert config.trainer_of("image").clip == 0.5


def test_a_group_cannot_be_emptied_by_an_empty_value():
    with pytest.raises(CatalignError, match=r"evaluation=\{\} changes nothing\n.*~evaluation\.KEY"):
        compose(["evaluation={}"])
    assert set(compose().evaluation) - set(compose(["~evaluation.probe"]).evaluation) == {"probe"}
