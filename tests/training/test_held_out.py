"""The weights that are kept are those with the lowest loss on held-out pairs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.loader import dump, load
from hvae_hpc.config.model import MovesConfig, OptimConfig
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.models.edm import EDM
from hvae_hpc.runs.folder import read_log
from hvae_hpc.training import held_out
from hvae_hpc.training.batches import PairTensors, to_tensors
from hvae_hpc.training.device import build
from hvae_hpc.training.held_out import BestWeights
from hvae_hpc.training.loop import TrainReport, train
from hvae_hpc.training.train import read_split, train_generator
from tests.tiny import make_data_set, make_pairs
from tests.training.test_training import CPU, assert_same, place

# So large a step that the loss goes up and down.
OPTIM = OptimConfig(images=80, batch_size=4, lr=0.3, ema_decay=0.5, precision="fp32")
CONFIG = EDMConfig(channels=(4, 8), attention_heads=2, held_out=0.3, checks=5)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "JUDGED", 8)


@pytest.fixture
def pairs() -> PairTensors:
    return to_tensors(make_pairs(8, 16), 0)


def trained(pairs: PairTensors, folder: Path, stop_after: int | None = None) -> TrainReport | None:
    model = build(lambda: EDM(CONFIG, (16, 16)), 3, CPU)
    held_out, learned = pairs.take(slice(6, 8)), pairs.take(slice(0, 6))
    best = BestWeights(model, held_out, OPTIM, CONFIG.checks, learned, list("abcdef"))
    where = place(folder, stop_after)
    return train(model, learned, OPTIM, 3, MovesConfig(), where, best)


def losses(folder: Path) -> dict[int, float]:
    events = [record for record in read_log(folder) if record.get("event") == "held_out"]
    return {int(event["images_seen"]): float(event["loss"]) for event in events}


def test_checks_come_at_equal_distances_and_the_last_one_at_the_end() -> None:
    pairs = to_tensors(make_pairs(2, 16), 0)
    optim = OptimConfig(images=100, batch_size=4)
    best = BestWeights(EDM(CONFIG, (16, 16)), pairs, optim, 5)
    due = [seen for seen in range(4, 104, 4) if best.is_due(seen)]
    assert due == [20, 40, 60, 80, 100]


def test_the_weights_of_the_lowest_loss_are_kept(pairs: PairTensors, tmp_path: Path) -> None:
    report = trained(pairs, tmp_path)
    by_images = losses(tmp_path)
    lowest = min(by_images, key=by_images.__getitem__)
    assert len(by_images) == 5
    assert lowest != 80  # or this would tell nothing
    assert report.terms["best_images_seen"] == lowest
    assert report.terms["held_out_loss"] == by_images[lowest]

    # The kept weights have that loss, on pairs that were not moved and with all feature maps.
    model = EDM(CONFIG, (16, 16)).eval()
    assert report is not None
    model.load_state_dict(report.weights)
    with torch.no_grad():
        total = 0.0
        for number in range(held_out.DRAWS):
            drawn = model.draw(2, 1.0, held_out.generator_for(0, "held out", number))
            batch = {"image": pairs.images[6:], "mask": pairs.masks[6:], **drawn}
            total += float(model(batch).total)
    assert total / held_out.DRAWS == pytest.approx(by_images[lowest], rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "copying", "kept"),
    [
        ((3.0, 1.0, 2.0), (False, True, False), 2.0),  # those of 1.0 copy
        ((3.0, 1.0, 2.0), (True, True, False), 2.0),
        ((3.0, 1.0, 2.0), (True, True, True), 1.0),  # all do
        ((3.0, 1.0, 2.0), (False, False, True), 1.0),  # the last ones are not even judged
    ],
)
def test_weights_whose_draws_are_copies_are_kept_only_where_all_are(
    pairs: PairTensors,
    monkeypatch: pytest.MonkeyPatch,
    losses: tuple[float, ...],
    copying: tuple[bool, ...],
    kept: float,
) -> None:
    model = build(lambda: EDM(CONFIG, (16, 16)), 3, CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    best = BestWeights(model, pairs, OPTIM, 3, pairs, list("abcdefgh"))
    for number, (loss, copies) in enumerate(zip(losses, copying, strict=True)):
        monkeypatch.setattr(BestWeights, "_measure_loss", lambda self, weights, loss=loss: loss)

        def decode(z: torch.Tensor, copies: bool = copies) -> tuple[torch.Tensor, None]:
            # As if the weights had the training images by heart, or knew nothing of them.
            noise = z.reshape(len(z), 2, 16, 16)[:, :1].sigmoid()
            return (pairs.images if copies else noise), None

        monkeypatch.setattr(model, "decode", decode)
        weights = {name: value + number for name, value in before.items()}
        found = best.check(weights, number)
        assert found.get("copying", 1.0) == copies
        assert found["loss"] == loss
    assert best.loss == kept
    assert best.images_seen == losses.index(kept)
    assert best.weights is not None
    assert torch.equal(best.weights["centre"], before["centre"] + losses.index(kept))
    assert best.terms()["best_copies"] == float(copying[losses.index(kept)])
    # The training goes on as if nobody had looked.
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_that_does_not_draw_by_itself_is_chosen_by_its_loss_alone(
    pairs: PairTensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(EDM, "draw_latent")
    model = build(lambda: EDM(CONFIG, (16, 16)), 3, CPU)
    best = BestWeights(model, pairs, OPTIM, 3, pairs, list("abcdefgh"))
    found = best.check(model.state_dict(), 4)
    assert (found["copies"], found["copying"], best.images_seen) == (0.0, 0.0, 4)


@pytest.mark.parametrize("steps", [4, 5, 7])
def test_a_training_that_was_stopped_keeps_the_same_weights(
    pairs: PairTensors, tmp_path: Path, steps: int
) -> None:
    whole = trained(pairs, tmp_path / "whole")
    while (report := trained(pairs, tmp_path / "pieces", steps)) is None:
        pass
    assert_same(whole, report)
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    assert report.terms == whole.terms


def test_the_stage_holds_out_the_last_training_cases(tmp_path: Path) -> None:
    data = make_data_set(tmp_path / "data", n=8, side=16)
    config = TrainConfig(
        data="tiny",
        generator="edm",
        split=SplitConfig(train=5, test=3),
        image_px=0,
        model=CONFIG,
        optim=OPTIM,
    )
    where = place(tmp_path / "run")
    outcome = train_generator(config, replace(where, data=data))
    assert outcome is not None
    assert outcome.metrics["pairs"] == 3  # of five cases, 30 % rounded up are held out
    assert len(outcome.details["train_cases"]) == 5
    assert set(losses(tmp_path / "run")) == {16, 32, 48, 64, 80}


def test_a_generator_of_more_cases_than_the_split_trains_on_has_the_first_spare_ones(
    tmp_path: Path,
) -> None:
    data = make_data_set(tmp_path / "data", n=12, side=16)
    split = SplitConfig(train=3, test=3)
    config = TrainConfig(
        data="tiny", generator="edm", split=split, image_px=0, model=CONFIG, optim=OPTIM, n_cases=5
    )
    outcome = train_generator(config, replace(place(tmp_path / "run"), data=data))
    assert outcome is not None
    assert outcome.metrics["pairs"] == 3  # two of five are held out
    cases = read_split(data, split)
    assert outcome.details["train_cases"] == [*cases.train, *cases.spare[:2]]
    assert "n_cases" not in dump(replace(config, n_cases=0))


def test_nothing_left_to_learn_from_is_refused() -> None:
    with pytest.raises(UserError, match=r"held_out keeps all 2 training cases back; lower it"):
        load(
            TrainConfig,
            {
                "data": "d",
                "generator": "edm",
                "split": {"train": 2, "test": 1},
                "image_px": 0,
                "model": {"kind": "edm", "held_out": 0.9},
                "optim": {"images": 32},
            },
            "here",
        )
