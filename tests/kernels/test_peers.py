"""The same numbers as TRL and Liger where the conventions agree, and where they do not, how."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from selfkd.kernels import fused_linear_divergence
from tests.kernels.cases import BACKENDS, Case, apart, random_case

IGNORED = -100


@pytest.fixture(scope="module")
def gkd_loss():
    """TRL's dense loss. Its arguments: both logits, labels, beta, temperature, reduction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.gkd import GKDTrainer
    return GKDTrainer.generalized_jsd_loss


def labels_of(case: Case) -> Tensor:
    """What TRL and Liger have in place of weights: a token counts or is ignored."""
    assert case.token_weight is not None
    case.token_weight[:] = (case.token_weight != 0).float()
    return torch.where(case.token_weight != 0, 0, IGNORED)


def logits_of(
    case: Case, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    assert bias is not None and case.teacher_bias is not None
    taught = case.teacher_hidden @ case.teacher_weight.T + case.teacher_bias
    return (hidden @ weight.T + bias)[None], taught[None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("beta", "temperature"), [(0.5, 1.0), (0.1, 2.0), (0.9, 0.5)])
def test_jsd_is_the_dense_loss_of_trl(gkd_loss, backend, beta, temperature):
    """Beta is the teacher's share, and the temperature divides both logits, without its square."""
    case = random_case(dtype=torch.float32)
    labels = labels_of(case)
    got, gradients = case.dense(backend=backend, beta=beta, temperature=temperature)
    leaves = case.leaves()
    theirs = gkd_loss(*logits_of(case, *leaves), labels[None], beta, temperature)
    assert got.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    for mine, other in zip(gradients, torch.autograd.grad(3 * theirs, leaves), strict=True):
        assert apart(mine, other) < 1e-5


def test_the_ends_of_beta_are_named_here_and_special_cases_there(gkd_loss):
    """Their loss jumps at both ends, as jsd itself tends to 0 there."""
    case = random_case(dtype=torch.float32)
    both, labels = logits_of(case, case.hidden, case.weight, case.bias), labels_of(case)[None]
    for end, near, kind in ((0.0, 1e-3, "forward_kl"), (1.0, 1 - 1e-3, "reverse_kl")):
        named, _ = case.dense(kind=kind)
        assert named.loss.item() == pytest.approx(gkd_loss(*both, labels, end).item(), rel=1e-5)
        assert gkd_loss(*both, labels, near) < 0.002 * named.loss


def test_normalizers_have_other_names(gkd_loss):
    """Without labels their default divides by sequences, not by tokens."""
    case = random_case(dtype=torch.float32)
    labels = labels_of(case)[None]
    both = logits_of(case, case.hidden, case.weight, case.bias)
    total, _ = case.dense(normalizer=1)
    theirs = gkd_loss(*both, labels, reduction="sum")
    assert total.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    step, _ = case.dense(normalizer=40)
    theirs = gkd_loss(*both, labels, num_items_in_batch=40)
    assert step.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert case.token_weight is not None
    case.token_weight[:] = 1
    everything, _ = case.dense(normalizer=1)
    assert everything.loss.item() == pytest.approx(gkd_loss(*both).item(), rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "beta", "theirs"),
    [("forward_kl", 0.5, 0.0), ("reverse_kl", 0.5, 1.0), ("jsd", 0.3, 0.3)],
)
def test_tokens_entropies_and_gradients_are_those_of_trls_chunked_loss(backend, kind, beta, theirs):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    case = random_case(dtype=torch.float32)
    labels_of(case)
    got, gradients = case.dense(backend=backend, kind=kind, beta=beta, temperature=2.0)
    leaves = case.leaves()
    per_token, entropy = ChunkedDivergenceFunction.apply(
        *leaves, case.teacher_hidden, case.teacher_weight, case.teacher_bias, theirs, 2.0
    )
    counted = case.token_weight != 0
    assert apart(got.per_token_N[counted], per_token[counted]) < 1e-5
    assert apart(got.student_entropy_N[counted], entropy[counted]) < 1e-5
    loss = per_token[counted].mean()
    for mine, other in zip(gradients, torch.autograd.grad(3 * loss, leaves), strict=True):
        assert apart(mine, other) < 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_jsd_is_the_chunked_loss_of_liger(backend):
    """Theirs adds half of a cross-entropy by default, and masks ignored tokens after the work."""
    if not find_spec("liger_kernel"):
        pytest.skip("liger-kernel is not installed")
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    case = random_case(dtype=torch.float32)
    labels = labels_of(case)
    got, gradients = case.dense(backend=backend, beta=0.3, temperature=2.0)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.3, temperature=2.0, compiled=False
    )
    (hidden, weight, bias), taught = case.leaves(), (case.teacher_hidden, case.teacher_weight)
    theirs = loss(hidden, weight, *taught, labels, bias, case.teacher_bias)
    assert isinstance(theirs, Tensor)
    assert got.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    others = torch.autograd.grad(3 * theirs, (hidden, weight, bias))
    for mine, other in zip(gradients, others, strict=True):
        assert apart(mine, other) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_logits_cost_the_others_their_accuracy(gkd_loss, backend):
    """Of two close models, whose divergence is of second order in what rounding does to logits."""
    case = random_case(64, 32, 4099, bias=False, seed=3)
    close = Case(
        case.hidden, case.weight, None, case.hidden * 1.02, case.weight * 1.01, None, None
    ).to(torch.bfloat16)
    truth = close.to(torch.float64).dense(backend="reference")[0].loss.item()
    logits = close.hidden @ close.weight.T, close.teacher_hidden @ close.teacher_weight.T
    theirs = gkd_loss(logits[0][None], logits[1][None], torch.zeros(1, 64)).item()
    tensors = (close.hidden, close.weight, close.teacher_hidden, close.teacher_weight)
    ours = fused_linear_divergence(*tensors, backend=backend).loss.item()
    assert ours == pytest.approx(truth, rel=1e-3)
    assert abs(theirs / truth - 1) > 0.1
