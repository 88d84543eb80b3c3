"""Classifier Alignment: replay of the release's own samples, and its formulas by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.slca.alignment import Alignment, Pairs, normalise_logits, samples_per_round, task_indicator
from models.slca.gaussians import Gaussian
from models.slca.slca_pp import scale_features
from tests.support import StubData, load_parity, make_config, make_learner
from utils.formulas.schedules import cosine
from utils.run.monitor import Monitor

VECTORS = ["4_ca_slca", "4_ca_slca_no_logit_norm", "4_ca_slca_uneven_last", "4_ca_slcapp", "4_ca_slcapp_uneven_last"]


def learner_before_alignment(name, compat):
    """A learner whose heads and means are the vector's; its backbone plays no part."""
    arrays, facts = load_parity(name)
    method = "slca_pp" if "slcapp" in name else "slca"
    d = arrays["class_means"].shape[1]
    config = make_config(model_name=method, compat=compat, ca_with_logit_norm=facts["logit_norm"], ca_epochs=facts["ca_epochs"],
                         weight_decay=facts["weight_decay"])
    learner = make_learner(config, StubData(facts["task_sizes"]))
    learner.net.backbone.dim = d
    for task in range(len(facts["task_sizes"])):
        learner.begin_task(task)
        learner.net.heads[task].load_state_dict(
            {kind: torch.from_numpy(arrays[f"before/heads.{task}.0.{kind}"]) for kind in ("weight", "bias")})
    learner.gaussians.classes = [Gaussian(torch.from_numpy(mean).float(), torch.zeros(0, d), 2) for mean in arrays["class_means"]]
    return learner, arrays, facts


def replay(learner, arrays, facts):
    """Align the learner's heads on the samples that the release drew; returns the loss of every step, per epoch."""
    task = len(facts["task_sizes"]) - 1
    alignment = Alignment(learner.net.heads, lr=facts["lr"], momentum=facts["momentum"], weight_decay=facts["weight_decay"],
                          tau=facts["logit_norm"])
    losses = []
    for epoch in range(facts["ca_epochs"]):
        alignment.set_lr(cosine(facts["lr"], epoch, facts["ca_epochs"]))
        samples = torch.from_numpy(arrays[f"epoch{epoch}/samples"])  # (K, 256, D)
        labels = torch.arange(len(samples)).repeat_interleave(256)
        features = samples.flatten(0, 1)
        if f"epoch{epoch}/rand" in arrays:
            age = task - learner.tasks_of_classes(task)[labels]
            features = scale_features(features, age, torch.from_numpy(arrays[f"epoch{epoch}/rand"]).flatten(), mu=0.02)
        order = torch.from_numpy(arrays[f"epoch{epoch}/perm"]).long()
        losses.append([alignment.step(features[batch], labels[batch]).item() for batch in order.split(256)])
    alignment.finish()
    return losses


@pytest.mark.parametrize("name", VECTORS)
def test_losses_and_heads_follow_the_release_on_its_own_samples(name):
    learner, arrays, facts = learner_before_alignment(name, compat="release" if "uneven" in name else "none")
    losses = replay(learner, arrays, facts)
    np.testing.assert_allclose(losses, facts["loss_per_step"], atol=1e-5)
    last = "after_last" if "after_last/heads.0.0.weight" in arrays else f"after_epoch{facts['ca_epochs'] - 1}"
    for task, head in enumerate(learner.net.heads):
        np.testing.assert_allclose(head.weight.detach(), arrays[f"{last}/heads.{task}.0.weight"], atol=1e-5)
        np.testing.assert_allclose(head.bias.detach(), arrays[f"{last}/heads.{task}.0.bias"], atol=1e-5)
    probe = torch.from_numpy(arrays["probe_features"])
    np.testing.assert_allclose(learner.net.classify(probe).detach(), arrays["probe_logits_after_ca"], atol=1e-5)


@pytest.mark.parametrize("name", [v for v in VECTORS if "slcapp" not in v])
def test_means_shrink_with_the_age_of_their_task(name):
    release = "release" if "uneven" in name else "none"
    learner, _, facts = learner_before_alignment(name, compat=release)
    learner.gaussians.sample = lambda means, count, generator: (means, torch.arange(len(means)))
    means, _ = learner.draw_features(2, 1, torch.Generator())
    ratio = (means / learner.gaussians.means()).mean(dim=1)
    np.testing.assert_allclose(ratio, facts["mean_multiplier_per_class"], atol=1e-6)


@pytest.mark.parametrize("name", ["4_ca_slca_uneven_last", "4_ca_slcapp_uneven_last"])
def test_with_uneven_tasks_the_true_task_does_not_match_the_release(name):
    learner, _, _ = learner_before_alignment(name, compat="none")
    assert learner.tasks_of_classes(2).tolist() == [0, 0, 1, 1, 2]
    release, _, _ = learner_before_alignment(name, compat="release")
    assert release.tasks_of_classes(2).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["4_ca_slcapp", "4_ca_slcapp_uneven_last"])
def test_after_alignment_old_heads_scale_their_input_as_in_the_release(name, monkeypatch):
    learner, arrays, facts = learner_before_alignment(name, compat="release")
    monkeypatch.setattr(type(learner).__mro__[1], "align", lambda self, task, monitor: replay(learner, arrays, facts))
    learner.align(2, None)
    np.testing.assert_allclose(learner.net.head_scales, [1.04, 1.02, 1.0])
    probe = torch.from_numpy(arrays["probe_features"])
    np.testing.assert_allclose(learner.net.classify(probe).detach(), arrays["probe_logits_after_update_scale"], atol=1e-5)
    learner.recall_heads()
    assert learner.net.head_scales == [1.0, 1.0, 1.0]


def test_alignment_cosine_follows_the_release():
    facts = load_parity("3_schedules")[1]
    for epochs in (3, 5):
        np.testing.assert_allclose([cosine(0.01, e, epochs) for e in range(epochs)], facts[f"ca_cosine_T{epochs}"], rtol=1e-9)


def test_logit_normalisation_equals_the_formula_written_out():
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    norms = torch.stack([logits[:, :2].norm(dim=1) + 1e-7, logits[:, 2:].norm(dim=1) + 1e-7], dim=1)
    expected = logits / (0.1 * norms.mean(dim=1, keepdim=True))
    torch.testing.assert_close(normalise_logits(logits, task_indicator([2, 3]), 0.1), expected)


def test_logits_of_zero_give_finite_gradients():
    logits = torch.zeros(2, 4, requires_grad=True)
    F.cross_entropy(normalise_logits(logits, task_indicator([2, 2]), 0.1), torch.tensor([0, 3])).backward()
    assert logits.grad.isfinite().all()


def test_alignment_uses_all_seen_classes():
    learner = make_learner(make_config(ca_samples=3, ca_batch_size=4), StubData([2, 3]))
    generator = torch.Generator().manual_seed(0)
    learner.gaussians.classes = [Gaussian.fit(torch.randn(6, 16, generator=generator)) for _ in range(5)]
    learner.task = 1
    batches = list(learner.drawn_batches(1, epoch=0))
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [3] * 5
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 3]


def test_rounds_within_a_memory_budget_draw_as_many_features_of_every_class():
    budget = 10 * 5 * 16 * 4 / 2**30  # 10 samples of 5 classes of 16 float32
    learner = make_learner(make_config(ca_samples=25, ca_batch_size=64, ca_memory_gb=budget), StubData([2, 3]))
    generator = torch.Generator().manual_seed(0)
    learner.gaussians.classes = [Gaussian.fit(torch.randn(6, 16, generator=generator)) for _ in range(5)]
    assert samples_per_round(learner.config, len(learner.gaussians), learner.net.backbone.dim) == [8, 8, 9]
    batches = list(learner.drawn_batches(1, epoch=0))
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [25] * 5
    assert all(len(features) <= 45 for features, _ in batches)


def test_the_budget_does_not_touch_the_paper_s_sizes():
    learner = make_learner(make_config(ca_samples=256), StubData([2, 3]))
    learner.net.backbone.dim = 768
    learner.gaussians.classes = [None] * 1000
    assert samples_per_round(learner.config, len(learner.gaussians), learner.net.backbone.dim) == [256]


def test_evaluation_inside_alignment_passes_the_backbone_once(monkeypatch):
    images = torch.randn(8, 3, 16, 16)
    data = StubData([2, 2], {t: [(images, torch.tensor([0, 1] * 4) + 2 * t)] for t in range(2)})
    learner = make_learner(make_config(ca_epochs=3, ca_eval=True, ca_samples=4), data)
    passes, reported = [], []
    features = learner.net.features
    monkeypatch.setattr(learner.net, "features", lambda x: passes.append(len(x)) or features(x))
    monitor = Monitor()
    monkeypatch.setattr(monitor, "end_alignment_epoch", lambda task, epoch, loss, accuracy: reported.append(accuracy))
    learner.learn_task(0, monitor)
    passes.clear()
    learner.learn_task(1, monitor)
    learner.evaluate(1)
    assert len(reported) == 3 and all(0 <= accuracy <= 100 for accuracy in reported)
    assert len(passes) == 3  # training images of the task for its statistics, test images of both tasks


# The pair term -----------------------------------------------------------------------------------------------


def pair_term_with_loops(means, features, labels, losses):
    """Mean over classes of the mean over ordered pairs of samples nearest their own class's mean."""
    nearest = [min(range(len(means)), key=lambda c: float((x - means[c]).square().sum())) for x in features]
    near = [found == int(label) for found, label in zip(nearest, labels, strict=True)]
    per_class = []
    for c in range(len(means)):
        rows = [i for i in range(len(labels)) if labels[i] == c and near[i]]
        differences = [abs(losses[a] - losses[b]) for a in rows for b in rows if a != b]
        if differences:
            per_class.append(sum(differences) / len(differences))
    return sum(per_class) / len(per_class)


def test_the_pair_term_is_the_mean_over_classes_of_the_mean_difference_between_two_losses():
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(4, 5, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)  # one class draws nothing
    features = means[labels] + torch.randn(40, 5, generator=generator)  # some lie nearer to another mean
    losses = torch.rand(40, generator=generator)
    term = Pairs(0.5, means).term(features, labels, losses)
    torch.testing.assert_close(term, torch.as_tensor(0.5 * pair_term_with_loops(means, features, labels, losses)))


def test_the_pair_term_is_0_without_pairs_and_passes_over_classes_without_images():
    means = torch.tensor([[0.0, 0.0], [torch.nan, torch.nan], [9.0, 9.0]])
    features, labels = torch.tensor([[0.0, 1.0], [9.0, 8.0]]), torch.tensor([0, 2])
    assert Pairs(1.0, means).term(features, labels, torch.tensor([1.0, 2.0])) == 0
    term = Pairs(1.0, means).term(features.repeat(2, 1), labels.repeat(2), torch.tensor([1.0, 2.0, 4.0, 2.0]))
    assert term == 1.5  # class 0: |1 - 4|, class 2: 0


def test_the_pair_term_brings_the_losses_of_a_class_together():
    def spread(weight):
        generator = torch.Generator().manual_seed(0)
        heads = [torch.nn.Linear(6, 3)]
        torch.nn.init.zeros_(heads[0].weight), torch.nn.init.zeros_(heads[0].bias)
        means = torch.randn(3, 6, generator=generator)
        labels = torch.arange(3).repeat(50)
        features = means[labels] + torch.randn(150, 6, generator=generator)
        alignment = Alignment(heads, lr=0.1, momentum=0.9, weight_decay=0.0, tau=None, pairs=Pairs(weight, means) if weight else None)
        for _ in range(60):
            alignment.step(features, labels)
        losses = F.cross_entropy(alignment.fused.logits(features), labels, reduction="none").detach()
        return pair_term_with_loops(means, features, labels, losses)

    assert spread(1.0) < 0.9 * spread(0.0)


def test_slca_passes_the_setting_on():
    learner = make_learner(make_config(model_name="slca", ca_pairs=0.2), StubData([2, 2]))
    learner.begin_task(0)
    learner.gaussians.classes = [Gaussian(torch.zeros(learner.net.backbone.dim), torch.zeros(0, learner.net.backbone.dim), 2)] * 2
    assert learner.make_alignment().pairs.weight == 0.2
