"""One thread for every test, set before torch is imported: tests fork processes, and a fork of a process whose OpenMP
threads have started can hang. Threads change no result that the tests look at.
"""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
