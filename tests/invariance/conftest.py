"""These tests compare on the processor, also on a machine with an accelerator."""

import os

os.environ["ACCELERATE_USE_CPU"] = "true"
