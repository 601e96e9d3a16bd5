"""WHERE weights lie and which processes there are: one module or folder a strategy, and the table STRATEGIES."""
