"""DeepSpeed ZeRO: weights, gradients and optimizer states are sharded over one process per device."""
