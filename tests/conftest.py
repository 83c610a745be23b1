"""What every test runs under. Set before anything imports torch or transformers, and inherited by subprocesses."""

import os


# No test may need the Hub; one that tries fails at once, on every machine alike.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests and the processes that they start share few cores: threads that wait for each other would cost more than they
# bring, and sums would depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
