"""Memory and communication of a training step, found by compiling it for devices that need not be installed."""
