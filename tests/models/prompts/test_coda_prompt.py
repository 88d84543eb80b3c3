"""CODA-Prompt's weighted components written out as loops, and which of them train."""

import torch
from torch.nn import functional as F

from models.prompts.coda_prompt import Components, orthogonality
from tests.support import StubData, make_config, make_learner

QUERY = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


def components(task=1):
    made = Components(pool=6, num_tasks=3, length=4, layers=[0, 2], dim=6, generator=torch.Generator().manual_seed(0))
    made.task = task
    return made


def test_a_prompt_is_the_sum_of_components_weighted_with_the_cosine_of_attended_query_and_key():
    made = components(task=1)  # two of three tasks: four of six components
    prefix = made(QUERY).prefixes[2]
    for image, query in enumerate(QUERY):
        p = torch.zeros(4, 6)
        for m in range(4):
            p += F.cosine_similarity(query * made.attention[1, m], made.keys[1, m], dim=0) * made.components[1, m]
        torch.testing.assert_close(prefix[image, 0], p[:2])
        torch.testing.assert_close(prefix[image, 1], p[2:])


def test_orthogonality_is_the_mean_square_of_the_gram_matrix_minus_the_identity():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(orthogonality(rows), torch.tensor((0 + 1 + 1 + 1) / 4))
    assert orthogonality(torch.eye(3)) == 0


def test_only_the_tasks_own_components_get_a_gradient():
    made = components(task=1)
    prompt, loss = made.for_training(QUERY)
    (prompt.prefixes[0].square().sum() + prompt.prefixes[2].square().sum() + loss).backward()
    for parameter in (made.components, made.keys, made.attention):
        assert parameter.grad.flatten(2).any(dim=2).any(dim=0).tolist() == [False, False, True, True, False, False]


def test_training_and_testing_see_the_same_prompt():
    made = components()
    torch.testing.assert_close(made.for_training(QUERY)[0].prefixes[0], made(QUERY).prefixes[0])


def test_its_learning_rate_falls_as_a_quarter_of_a_cosine():
    learner = make_learner(make_config(model_name="coda_prompt", prompt_layers=[0], prompt_pool=4, epochs=4), StubData([2, 2]))
    assert [round(learner.learning_rate(1.0, epoch), 4) for epoch in range(4)] == [1.0, 0.8686, 0.5090, 0.0157]
