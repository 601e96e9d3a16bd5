"""thriftune: fine-tune large language models on the GPUs you can actually get.

Plain Python, without Flyte or Kubernetes: everything here can be called from a unit test, from torchrun or from
another orchestrator. The packages `tasks` and `workflows` wire it into Flyte.
"""

__version__ = "0.1.0"
