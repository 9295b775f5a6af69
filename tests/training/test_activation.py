"""QuickGELU and its shorter gradient."""

from __future__ import annotations

import pytest
import torch

from xclip_deploy.training.activation import quick_gelu


def plain(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def test_gradient_is_that_of_its_values() -> None:
    x = torch.linspace(-6, 6, 49, dtype=torch.float64).reshape(7, 7).requires_grad_()
    assert torch.autograd.gradcheck(quick_gelu, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_values_and_gradients_of_the_formula(dtype: torch.dtype) -> None:
    x = torch.linspace(-60, 60, 4001).to(dtype)
    upstream = torch.linspace(-1, 1, 4001).to(dtype)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    values, plain_values = quick_gelu(found), plain(expected)
    assert values.dtype == dtype
    torch.testing.assert_close(values, plain_values)
    torch.autograd.backward(values, upstream)
    torch.autograd.backward(plain_values, upstream)
    torch.testing.assert_close(found.grad, expected.grad)


def test_without_a_gradient_it_is_the_formula_itself() -> None:
    """So that exports and references keep their numbers to the bit."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quick_gelu(x), plain(x))
    with torch.no_grad():
        assert torch.equal(quick_gelu(x.clone().requires_grad_()), plain(x))
