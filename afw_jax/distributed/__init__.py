"""Several devices and hosts: device meshes, launchers, the distributed runtime, signals and XLA flags."""
