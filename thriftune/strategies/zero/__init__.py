"""DeepSpeed ZeRO: weights, gradients and optimizer states cut up over one process per device."""
