"""A config that is quick to compile."""

from configs import synapse


def small(**changes):
  """Synapse's config with a small UNet; keyword arguments override keys, for instance **{'train.batch_size': 2}."""
  config = synapse.get_config()
  config.data.size = (32, 32)
  config.model.unet.features = (4, 6, 8, 10, 12)
  config.train.batch_size = 4
  config.update_from_flattened_dict(changes)
  return config
