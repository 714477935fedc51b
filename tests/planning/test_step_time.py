"""Predicted steps: near published ones, and moved by what moves a step."""

import jax
import pytest

from benchmarks import step_times
from benchmarks.step_times import STEPS
from jaxclf.config import loading
from jaxclf.core.errors import InputError
from jaxclf.planning import hardware, step_time
from jaxclf.planning.estimate import PlannedRun, Sizes
from jaxclf.planning.step_time import Work
from tests.planning.test_plan import ONE, ROOT


def work(topology: str, sizes: Sizes, *words: str, config="llama3_8b_20ng.py", slices=1) -> Work:
    fields = [*words, "train.max_length=2048", "train.batch_size=32"]
    found = loading.load(str(ROOT / "configs" / config), fields)
    job = PlannedRun(found, hardware.topology(topology, slices))
    return step_time.work(job, ONE | sizes, 1)


@pytest.mark.parametrize("step", [STEPS[0], STEPS[9], STEPS[11], STEPS[12], STEPS[13], STEPS[16]])
def test_a_published_step_is_predicted(step):
    job = step_times.job(step)
    done = step_times.work(step, job)
    predicted = step_time.seconds(done, job.topology)
    assert predicted == pytest.approx(step_times.measured(step, job, done), rel=0.05)
    assert 0 < step_time.share_of_peak(done, predicted, job.topology) < 1


def test_what_is_computed_again_is_told_from_the_models_own():
    sizes = {"fsdp": 8}
    again, kept, groups = (
        work("v5p:2x2x2", sizes, f"model.{field}")
        for field in (
            "checkpoint_layers=1",
            "gradient_checkpointing=False",
            "checkpoint_layers=4",
        )
    )
    assert again.model == kept.model == groups.model
    assert kept.again == 0 < again.again < groups.again
    own = kept.products + kept.attention
    assert again.products + again.attention == pytest.approx(own + again.again)


def test_adapters_save_the_gradients_of_kernels_and_their_sums():
    full, lora = (
        work("v5p:2x2x2", {"fsdp": 8}, config=f"llama3_8b_20ng.py{word}") for word in ("", ":lora")
    )
    assert lora.products < 0.8 * full.products
    assert lora.memory < full.memory
    assert lora.beside.inside < full.beside.inside


def test_between_slices_only_each_chips_part_of_the_gradients_crosses():
    """An all-reduce over two slices: each of 8 chips sends its eighth, once there and once back."""
    alone = work("v5p:2x2x2", {"fsdp": 8})
    two = work("v5p:2x2x2", {"data": 2, "fsdp": 8}, slices=2)
    job = PlannedRun(
        loading.load(str(ROOT / "configs/llama3_8b_20ng.py")), hardware.topology("v5p:2x2x2")
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(job.state[0].trained))
    assert alone.beside.network == two.between.network == 0
    assert two.beside.network == pytest.approx(parameters * 2 / 8, rel=1e-6)


@pytest.mark.parametrize(
    ("topology", "slices"), [("v5p:2x2x2", 0), ("h100:8", 2), ("v5p:2x2x2", -1)]
)
def test_slices_are_of_tpus_and_at_least_one(topology, slices):
    with pytest.raises(InputError, match=f"--slices {slices}: expected 1 or more slices of a TPU"):
        hardware.topology(topology, slices)
