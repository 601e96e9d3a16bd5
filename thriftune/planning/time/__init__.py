"""How long a run takes, from what it computes and how fast its devices do that: no run is needed."""
