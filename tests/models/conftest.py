"""Networks are compared with references in float32, on any device: accelerators round the factors of products else."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def float32_products():
  """Of the module, so that it holds for module fixtures, too."""
  with jax.default_matmul_precision('highest'):
    yield
